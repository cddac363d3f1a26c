//! The sources that a configuration names: deny lists and lists of targets in files, DNS answers and keys of etcd.

mod deny_files;
pub mod etcd_settings;
pub mod followed_files;
pub mod list_sources;
mod lists;
mod names;
pub mod source_read;
mod trees;

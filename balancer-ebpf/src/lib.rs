//! The XDP program.
#![no_std]

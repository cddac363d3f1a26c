//! Converts the configurations of nginx, HAProxy, keepalived and `ipvsadm` to the balancer's configuration. The crate
//! takes and returns only text.
//!
//! Begin with `dialect`; `nginx`, `haproxy`, `keepalived` and `ipvsadm` turn a file into services and notes, `writer` turns
//! these into a file that `balancer check` accepts.

mod accept;
mod address;
mod choice;
mod comments;
mod dialect;
mod error;
mod haproxy;
mod ipvsadm;
mod keepalived;
mod nginx;
mod notes;
mod place;
mod service;
mod tree;
mod valid;
mod writer;

use std::net::IpAddr;

pub use dialect::Dialect;
pub use error::NotUnderstood;
pub use notes::Conversion;

/// A function that returns the names and texts of the files that an `include` names, given the name of the including
/// file and a pattern.
pub type Include<'a> = &'a mut dyn FnMut(&str, &str) -> Result<Vec<(String, String)>, String>;

/// Converts files of one dialect, given as pairs of name and text. `addresses` replace the addresses of listeners that
/// listen on every address.
///
/// # Errors
///
/// Fails if the text is of another dialect, or contains nothing that could become a service.
pub fn convert(
    dialect: Dialect,
    files: &[(String, String)],
    addresses: &[IpAddr],
    include: Include<'_>,
) -> Result<Conversion, NotUnderstood> {
    let mut conversion = Conversion::new(dialect, addresses);
    let converted = match dialect {
        Dialect::Nginx => nginx::convert(&mut conversion, files, include),
        Dialect::Haproxy => haproxy::convert(&mut conversion, files),
        Dialect::Keepalived => keepalived::convert(&mut conversion, files, include),
        Dialect::Ipvsadm => ipvsadm::convert(&mut conversion, files),
    };
    let checked = converted.and_then(|()| match conversion.has_candidates {
        true => conversion.make_valid(),
        false => Err(NotUnderstood::whole(format!("read as {dialect}, {}", dialect.lacks()))),
    });
    let name = files.first().map_or("", |(name, _)| name.as_str());
    checked.map_err(|error| error.or_in(name))?;
    Ok(conversion)
}

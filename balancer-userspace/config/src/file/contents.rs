//! Reads the files that a configuration names.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

/// Reads a regular file of at most `largest` MiB.
///
/// # Errors
/// Returns the reason why the file cannot be read, in a form that continues a sentence beginning with the file's name.
pub fn read(path: &Path, largest: u64) -> Result<Vec<u8>, String> {
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    // Opening a named pipe would wait for a writer.
    if !path.metadata().map_err(cannot)?.is_file() {
        return Err("cannot be read: it is not a regular file".to_owned());
    }
    let (mut bytes, bound) = (Vec::new(), largest << 20);
    File::open(path).and_then(|file| file.take(bound + 1).read_to_end(&mut bytes)).map_err(cannot)?;
    if bytes.len() as u64 > bound {
        return Err(format!("is larger than {largest} MiB; is it the right file?"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileTypeExt as _, process::Command};

    use super::*;

    #[test]
    fn when_it_is_no_regular_file_or_too_large_then_it_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        assert!(read(&path, 1).unwrap_err().starts_with("cannot be read: No such file"));
        for (length, fits) in [(1 << 20, true), ((1 << 20) + 1, false)] {
            fs::write(&path, vec![b'a'; length]).unwrap();
            assert_eq!(read(&path, 1).is_ok(), fits, "{length}");
        }
        assert_eq!(read(&path, 1).unwrap_err(), "is larger than 1 MiB; is it the right file?");
        assert_eq!(read(directory.path(), 1).unwrap_err(), "cannot be read: it is not a regular file");
    }

    #[test]
    fn when_it_is_a_pipe_then_nobody_waits_for_its_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(path.metadata().unwrap().file_type().is_fifo());
        assert_eq!(read(&path, 1).unwrap_err(), "cannot be read: it is not a regular file");
    }
}

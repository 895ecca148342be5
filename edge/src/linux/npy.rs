//! Embeddings as a NumPy file: format version 1.0, little-endian `float32`, `[n, dimension]`, row-major.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes the rows to `path`, whole or not at all.
///
/// # Errors
/// Whatever the system says, and rows of different lengths.
pub fn write(path: &Path, dimension: usize, rows: &[Vec<f32>]) -> io::Result<()> {
    if rows.iter().any(|row| row.len() != dimension) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "embeddings of different dimensions"));
    }
    write_whole(path, |file| {
        file.write_all(&header(rows.len(), dimension))?;
        rows.iter().flatten().try_for_each(|x| file.write_all(&x.to_le_bytes()))
    })
}

/// Writes a file, whole or not at all.
///
/// # Errors
/// Whatever the system says.
pub fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.new", std::process::id()));
    let draft = PathBuf::from(draft);
    let write_draft = || {
        let mut file = BufWriter::new(File::create(&draft)?);
        write(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    };
    let written = write_draft().and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

/// Magic, version, length and a Python literal, padded so that the data begins at a multiple of 64 bytes.
fn header(rows: usize, dimension: usize) -> Vec<u8> {
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dimension}), }}");
    let before = 10;
    let padding = (before + text.len() + 1).next_multiple_of(64) - (before + text.len() + 1);
    text.extend(std::iter::repeat_n(' ', padding));
    text.push('\n');
    let length = u16::try_from(text.len()).expect("two numbers and 80 characters are less than 64 KiB");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(text.into_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_what_numpy_writes() {
        let header = header(2, 3);
        assert_eq!(header.len(), 128);
        assert_eq!(&header[..10], b"\x93NUMPY\x01\x00\x76\x00");
        let text = std::str::from_utf8(&header[10..]).unwrap();
        assert_eq!(text.trim_end(), "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }");
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn a_file_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("e.npy");
        write(&path, 2, &[vec![1.0, 2.0], vec![3.0, 4.0]]).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!((bytes.len(), &bytes[128..132]), (128 + 16, 1.0_f32.to_le_bytes().as_slice()));
        assert!(write(&path, 2, &[vec![1.0]]).is_err());
        assert!(write(&dir.path().join("no/such/folder.npy"), 0, &[]).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

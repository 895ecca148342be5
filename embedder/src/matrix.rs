//! Matrices of features: in memory, or in a `.npy` or safetensors file that is read in blocks, so that a million rows need no
//! memory.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use half::f16;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use thiserror::Error;

/// Why a file is no matrix.
#[derive(Debug, Error)]
pub enum MatrixError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It holds something else.
    #[error("{} is no matrix of features: {reason}", path.display())]
    NotAMatrix {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Rows of one length.
pub trait Rows: Sync {
    /// How many rows there are.
    fn count(&self) -> usize;

    /// Values a row.
    fn dimension(&self) -> usize;

    /// These rows, one after the other.
    ///
    /// # Errors
    /// [`MatrixError`], also for values that are not finite.
    fn read(&self, rows: Range<usize>) -> Result<Vec<f32>, MatrixError>;
}

/// Rows in memory.
#[derive(Debug, Clone, Copy)]
pub struct InMemory<'a> {
    /// `[n, D]`, row-major.
    pub values: &'a [f32],
    /// D.
    pub dimension: usize,
}

impl Rows for InMemory<'_> {
    fn count(&self) -> usize {
        self.values.len() / self.dimension
    }

    fn dimension(&self) -> usize {
        self.dimension
    }

    fn read(&self, rows: Range<usize>) -> Result<Vec<f32>, MatrixError> {
        Ok(self.values[rows.start * self.dimension..rows.end * self.dimension].to_vec())
    }
}

/// Several matrices, one below the other.
pub struct Stacked<'a>(Vec<&'a dyn Rows>);

impl<'a> Stacked<'a> {
    /// Stacks them.
    ///
    /// # Panics
    /// If there is none, or their rows are not of one length.
    pub fn new(parts: Vec<&'a dyn Rows>) -> Self {
        assert!(parts.iter().all(|part| part.dimension() == parts[0].dimension()), "rows of one length");
        assert!(!parts.is_empty(), "at least one matrix");
        Self(parts)
    }
}

impl Rows for Stacked<'_> {
    fn count(&self) -> usize {
        self.0.iter().map(|part| part.count()).sum()
    }

    fn dimension(&self) -> usize {
        self.0[0].dimension()
    }

    fn read(&self, rows: Range<usize>) -> Result<Vec<f32>, MatrixError> {
        let mut values = Vec::with_capacity(rows.len() * self.dimension());
        let mut first = 0;
        for part in &self.0 {
            let last = first + part.count();
            let (start, end) = (rows.start.clamp(first, last), rows.end.clamp(first, last));
            if start < end {
                values.extend(part.read(start - first..end - first)?);
            }
            first = last;
        }
        Ok(values)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F16,
    F32,
    F64,
}

impl Element {
    const fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F16 => {
                bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect()
            }
            Self::F32 => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            Self::F64 => bytes.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32).collect(),
        }
    }
}

/// A matrix in a file, of which only its header is in memory.
#[derive(Debug)]
pub struct MatrixFile {
    path: PathBuf,
    file: Mutex<File>,
    /// Bytes before the first value.
    offset: u64,
    element: Element,
    count: usize,
    dimension: usize,
}

/// What a header says.
struct Layout {
    offset: u64,
    element: Element,
    shape: Vec<u64>,
}

/// The largest safetensors header; the format's own limit.
const HEADER_MAX: u64 = 100_000_000;

impl MatrixFile {
    /// Opens a `.npy` file (two axes, C order, `<f2`, `<f4` or `<f8`), or a safetensors file with a tensor `features`, or with
    /// one tensor only.
    ///
    /// # Errors
    /// [`MatrixError`].
    pub fn open(path: &Path) -> Result<Self, MatrixError> {
        let unreadable = |source| MatrixError::Read { path: path.into(), source };
        let no_matrix = |reason: String| MatrixError::NotAMatrix { path: path.into(), reason };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(no_matrix("it is no regular file".to_owned()));
        }
        let length = metadata.len();
        let layout = if path.extension().is_some_and(|extension| extension == "npy") {
            npy_layout(&file)
        } else {
            safetensors_layout(&file, length)
        };
        let Layout { offset, element, shape } = layout.map_err(no_matrix)?;
        let &[count, dimension] = shape.as_slice() else {
            return Err(no_matrix(format!("its shape is {shape:?}, not [rows, dimension]")));
        };
        if count == 0 || dimension == 0 {
            return Err(no_matrix(format!("its shape is {shape:?}, which holds nothing")));
        }
        let wanted = count.checked_mul(dimension).and_then(|n| n.checked_mul(element.size() as u64));
        let end = wanted.and_then(|bytes| bytes.checked_add(offset));
        if end.is_none_or(|end| end > length) {
            return Err(no_matrix(format!("it is cut off: {shape:?} values do not fit into {length} bytes")));
        }
        // A file may be larger than the memory of a machine of 32 bits.
        let (Ok(count), Ok(dimension)) = (usize::try_from(count), usize::try_from(dimension)) else {
            return Err(no_matrix(format!("its shape is {shape:?}, more than this machine can count")));
        };
        Ok(Self { path: path.into(), file: Mutex::new(file), offset, element, count, dimension })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Rows for MatrixFile {
    fn count(&self) -> usize {
        self.count
    }

    fn dimension(&self) -> usize {
        self.dimension
    }

    fn read(&self, rows: Range<usize>) -> Result<Vec<f32>, MatrixError> {
        let row_bytes = self.dimension * self.element.size();
        let mut bytes = vec![0; rows.len() * row_bytes];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.offset + (rows.start * row_bytes) as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|source| MatrixError::Read { path: self.path.clone(), source })?;
        let values = self.element.decode(&bytes);
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(place) => {
                let reason = format!("row {} holds {}", rows.start + place / self.dimension, values[place]);
                Err(MatrixError::NotAMatrix { path: self.path.clone(), reason })
            }
        }
    }
}

fn npy_layout(file: &File) -> Result<Layout, String> {
    let mut reader = BufReader::new(file);
    let header = npyz::NpyHeader::from_reader(&mut reader).map_err(|error| error.to_string())?;
    let offset = reader.stream_position().map_err(|error| error.to_string())?;
    if header.order() != npyz::Order::C && header.shape().len() > 1 {
        return Err("it is in Fortran order: save it with numpy.ascontiguousarray".to_owned());
    }
    let kind = header.dtype().descr();
    let element = match kind.trim_matches('\'') {
        "<f2" => Element::F16,
        "<f4" => Element::F32,
        "<f8" => Element::F64,
        other => return Err(format!("its values are {other}, not <f2, <f4 or <f8")),
    };
    Ok(Layout { offset, element, shape: header.shape().to_vec() })
}

fn safetensors_layout(mut file: &File, length: u64) -> Result<Layout, String> {
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(|_| "it is shorter than a header".to_owned())?;
    let size = u64::from_le_bytes(size);
    if size > HEADER_MAX || size + 8 > length {
        return Err("it does not begin with a safetensors header".to_owned());
    }
    let mut header = Vec::new();
    file.take(size).read_to_end(&mut header).map_err(|error| error.to_string())?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| error.to_string())?;
    let tensors = metadata.tensors();
    let only = || if tensors.len() == 1 { tensors.values().next() } else { None };
    let info = tensors.get("features").or_else(only);
    let info = info.ok_or("it has neither a tensor `features` nor one tensor only")?;
    let element = match info.dtype {
        Dtype::F16 => Element::F16,
        Dtype::F32 => Element::F32,
        Dtype::F64 => Element::F64,
        other => return Err(format!("its values are {other:?}, not F16, F32 or F64")),
    };
    let shape = info.shape.iter().map(|&side| side as u64).collect();
    Ok(Layout { offset: 8 + size + info.data_offsets.0 as u64, element, shape })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use safetensors::tensor::TensorView;

    use super::*;

    /// A `.npy` file by the format's description: magic, version 1.0, length of the header, header, values.
    fn npy(kind: &str, order: &str, shape: &str, values: &[u8]) -> Vec<u8> {
        let mut header = format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}");
        while (header.len() + 11) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let length = (header.len() as u16).to_le_bytes();
        [b"\x93NUMPY\x01\x00".as_slice(), &length, header.as_bytes(), values].concat()
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn write(name: &str, contents: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        File::create(&path).unwrap().write_all(contents).unwrap();
        (dir, path)
    }

    #[test]
    fn blocks_of_files_are_the_rows_that_were_written() {
        let values: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let halves: Vec<u8> = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        let doubles: Vec<u8> = values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect();
        for (kind, contents) in [("<f4", bytes(&values)), ("<f2", halves), ("<f8", doubles)] {
            let (_dir, path) = write("a.npy", &npy(kind, "False", "(4, 3)", &contents));
            let matrix = MatrixFile::open(&path).unwrap();
            assert_eq!((matrix.count(), matrix.dimension()), (4, 3));
            assert_eq!(matrix.read(1..3).unwrap(), values[3..9], "{kind}");
        }
        let (rows, items) = (bytes(&values), bytes(&[0.0; 4]));
        let views = [
            ("features", TensorView::new(Dtype::F32, vec![4, 3], &rows).unwrap()),
            ("items", TensorView::new(Dtype::F32, vec![4], &items).unwrap()),
        ];
        let (_dir, path) = write("b.safetensors", &safetensors::serialize(views, None).unwrap());
        let matrix = MatrixFile::open(&path).unwrap();
        assert_eq!(matrix.read(0..4).unwrap(), values);
        let memory = InMemory { values: &values, dimension: 3 };
        let stacked = Stacked::new(vec![&memory, &matrix]);
        assert_eq!(stacked.count(), 8);
        assert_eq!(stacked.read(3..6).unwrap(), [&values[9..], &values[..6]].concat());
    }

    #[test]
    fn whatever_is_no_matrix_says_why() {
        let four = bytes(&[1.0; 4]);
        for (name, contents, wanted) in [
            ("a.npy", b"nonsense".to_vec(), ""),
            ("a.npy", npy("<f4", "True", "(2, 2)", &four), "Fortran order"),
            ("a.npy", npy("<i4", "False", "(2, 2)", &four), "<i4"),
            ("a.npy", npy("<f4", "False", "(4,)", &four), "[4]"),
            ("a.npy", npy("<f4", "False", "(0, 2)", &four), "holds nothing"),
            ("a.npy", npy("<f4", "False", "(2, 3)", &four), "cut off"),
            ("a.npy", npy("<f4", "False", "(9223372036854775807, 9)", &four), "cut off"),
            ("a.safetensors", vec![], "shorter than a header"),
            ("a.safetensors", vec![0xff; 64], "safetensors header"),
            ("a.safetensors", [&4_u64.to_le_bytes()[..], b"{{{{"].concat(), ""),
        ] {
            let (_dir, path) = write(name, &contents);
            let error = MatrixFile::open(&path).unwrap_err().to_string();
            assert!(
                error.contains("is no matrix of features") && error.contains(wanted),
                "{wanted}: {error}"
            );
        }
        let (_dir, path) = write("a.npy", &npy("<f4", "False", "(2, 2)", &bytes(&[1.0, 2.0, f32::NAN, 1.0])));
        let error = MatrixFile::open(&path).unwrap().read(0..2).unwrap_err().to_string();
        assert!(error.contains("row 1 holds NaN"), "{error}");
        assert!(matches!(MatrixFile::open(Path::new("/nowhere.npy")), Err(MatrixError::Read { .. })));
    }
}

//! ONNX Runtime, where somebody has it: a shared library that is loaded when it is asked for.
//!
//! A process loads one library, once ([`load`]). Each thread that runs a network at the same time has a session of its own, with one
//! thread, so that photos are embedded on all cores side by side, as tract does it.

use std::error::Error as _;
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::session::Session;
use ort::value::TensorRef;
use thiserror::Error;

/// The version of its interface that is used: that of ONNX Runtime 1.18, and the cargo feature of `ort`.
const API: u32 = 18;

/// The library that this process has loaded.
static LOADED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Why there is no ONNX Runtime.
#[derive(Debug, Error)]
pub enum LoadError {
    /// It is no library, or not one of ONNX Runtime, or too old a one.
    #[error("{} is no ONNX Runtime that can be used: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// Another one is loaded.
    #[error("{} cannot be loaded: this process has loaded {} already", path.display(), loaded.display())]
    Another {
        /// The file.
        path: PathBuf,
        /// The one that is.
        loaded: PathBuf,
    },
}

/// Loads the shared library of ONNX Runtime (1.18 or newer); [`crate::Embedder::load_preferred`] takes it from then on.
///
/// # Errors
/// [`LoadError`].
pub fn load(path: &Path) -> Result<(), LoadError> {
    let unusable = |reason: String| LoadError::Unusable { path: path.to_owned(), reason };
    let mut already = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = &*already {
        let another = || LoadError::Another { path: path.to_owned(), loaded: loaded.clone() };
        return if loaded == path { Ok(()) } else { Err(another()) };
    }
    // Absolute, because `ort` takes a relative path from the folder of the program.
    let absolute = std::fs::canonicalize(path).map_err(|error| unusable(error.to_string()))?;
    check(&absolute).map_err(unusable)?;
    ort::init_from(&absolute).map_err(|error| unusable(error.to_string()))?.commit();
    *already = Some(path.to_owned());
    Ok(())
}

/// The entry point of the library: `OrtApiBase` of ONNX Runtime's `onnxruntime_c_api.h`.
#[repr(C)]
struct ApiBase {
    get_api: unsafe extern "system" fn(u32) -> *const c_void,
    get_version_string: unsafe extern "system" fn() -> *const c_char,
}

/// Looks at a library before `ort` does, which waits for itself for ever where it has to refuse one (2.0.0-rc.12).
fn check(path: &Path) -> Result<(), String> {
    // SAFETY: loading runs the library's initialisers. It is one that the user named, to be run in this process.
    let library = unsafe { libloading::Library::new(path) };
    // What the system's loader said stands behind its "dlopen failed".
    let said =
        |error: libloading::Error| error.source().map_or_else(|| error.to_string(), ToString::to_string);
    let library = library.map_err(said)?;
    // SAFETY: the signature is that of `OrtGetApiBase` in every version of ONNX Runtime's C header.
    let entry = unsafe { library.get::<unsafe extern "system" fn() -> *const ApiBase>(b"OrtGetApiBase") };
    let entry = entry.map_err(|_| "it has no `OrtGetApiBase`".to_owned())?;
    // SAFETY: it takes nothing, and returns a pointer to a static, or null, which is looked at.
    let base = unsafe { entry().as_ref() }.ok_or("it gives no API")?;
    // SAFETY: it takes nothing, and returns a static text that ends with a zero, or null.
    let text = unsafe { (base.get_version_string)() };
    if text.is_null() {
        return Err("it has no version".to_owned());
    }
    // SAFETY: not null, and ends with a zero.
    let version = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok()).unwrap_or(0);
    // SAFETY: it takes a number, and returns null where it does not know that version.
    let is_known = minor >= API && !unsafe { (base.get_api)(API) }.is_null();
    if is_known { Ok(()) } else { Err(format!("it has version {version}, and 1.{API} is the least")) }
}

/// Whether [`load`] was called, and a network can run here.
pub fn is_loaded() -> bool {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// A network's sessions.
pub(crate) struct Sessions {
    bytes: Vec<u8>,
    /// Those that no thread runs.
    idle: Mutex<Vec<Session>>,
}

impl Sessions {
    /// Makes the first session of an ONNX file. A sentence where the library does not take it.
    pub(crate) fn new(bytes: Vec<u8>) -> Result<Self, String> {
        let first = session(&bytes)?;
        let (inputs, outputs) = (first.inputs().len(), first.outputs().len());
        if (inputs, outputs) != (1, 1) {
            return Err(format!("it has {inputs} inputs and {outputs} outputs, not one of each"));
        }
        Ok(Self { bytes, idle: Mutex::new(vec![first]) })
    }

    /// Runs on `input` of `shape`; the output's shape and values.
    pub(crate) fn run(&self, shape: [usize; 4], input: &[f32]) -> Result<(Vec<usize>, Vec<f32>), String> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut session = idle.map_or_else(|| session(&self.bytes), Ok)?;
        let mut run = || -> ort::Result<(Vec<usize>, Vec<f32>)> {
            let input = TensorRef::from_array_view((shape, input))?;
            let outputs = session.run(ort::inputs![input])?;
            let (shape, values) = outputs[0].try_extract_tensor::<f32>()?;
            let shape = shape.iter().map(|side| usize::try_from(*side).unwrap_or(0)).collect();
            Ok((shape, values.to_vec()))
        };
        let ran = run().map_err(|error| error.to_string());
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        ran
    }
}

fn session(bytes: &[u8]) -> Result<Session, String> {
    let made = || -> ort::Result<Session> {
        let mut builder = Session::builder()?.with_intra_threads(1)?;
        // Its kernels for signed 8-bit weights saturate on processors without VNNI; with this it takes others, which are slower.
        #[cfg(target_arch = "x86_64")]
        if !std::is_x86_feature_detected!("avx512vnni") && !std::is_x86_feature_detected!("avxvnni") {
            builder = builder.with_config_entry("session.x64quantprecision", "1")?;
        }
        builder.commit_from_memory(bytes)
    };
    made().map_err(|error| error.to_string())
}

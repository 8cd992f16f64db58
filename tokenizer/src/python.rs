//! The Python module `raychat_bpe`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::Error;

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        PyValueError::new_err(error.to_string())
    }
}

/// Count the words that the split pattern cuts the texts into: word (UTF-8 bytes) -> occurrences.
#[pyfunction]
fn count<'py>(
    py: Python<'py>,
    texts: Vec<PyBackedStr>,
    pattern: &str,
) -> PyResult<Bound<'py, PyDict>> {
    let counts = py.detach(|| crate::count(&texts, pattern))?;
    let dict = PyDict::new(py);
    for (word, n) in counts {
        dict.set_item(PyBytes::new(py, word.as_bytes()), n)?;
    }
    Ok(dict)
}

/// Learn byte-pair merges from counted words; return the tokens in the order of their ids.
#[pyfunction]
fn train<'py>(
    py: Python<'py>,
    counts: Bound<'py, PyDict>,
    vocab_size: usize,
) -> PyResult<Bound<'py, PyList>> {
    let words: Vec<(Vec<u8>, i64)> = counts
        .iter()
        .map(|(word, n)| Ok((word.cast::<PyBytes>()?.as_bytes().to_vec(), n.extract()?)))
        .collect::<PyResult<_>>()?;
    let tokens = py.detach(|| crate::train(&words, vocab_size))?;
    PyList::new(py, tokens.iter().map(|token| PyBytes::new(py, token)))
}

/// Byte-level byte-pair encoding in Rust.
#[pymodule]
fn raychat_bpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(count, module)?)?;
    module.add_function(wrap_pyfunction!(train, module)?)
}

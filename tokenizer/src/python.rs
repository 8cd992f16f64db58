//! The Python module `raychat_bpe`, documented in `raychat_bpe.pyi`.

use std::ffi::CStr;

use numpy::{Element, IntoPyArray};
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

use crate::arrow::Column;
use crate::{Encoder, Error, Id};

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        PyValueError::new_err(error.to_string())
    }
}

/// A list of str, or an Arrow string column (anything with `__arrow_c_stream__` or `__arrow_c_array__`).
enum Texts {
    List(Vec<PyBackedStr>),
    Arrow(Column),
}

impl<'py> FromPyObject<'_, 'py> for Texts {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Texts> {
        if object.hasattr("__arrow_c_stream__")? {
            let capsule = object.call_method0("__arrow_c_stream__")?;
            // SAFETY: the capsule's name guarantees its contents, and nothing else consumes it.
            Ok(Texts::Arrow(unsafe { Column::from_stream(pointer(&capsule, c"arrow_array_stream")?)? }))
        } else if object.hasattr("__arrow_c_array__")? {
            let capsules = object.call_method0("__arrow_c_array__")?.cast_into::<PyTuple>()?;
            let (schema, array) = (capsules.get_item(0)?, capsules.get_item(1)?);
            // SAFETY: as above.
            Ok(Texts::Arrow(unsafe {
                Column::from_array(pointer(&schema, c"arrow_schema")?, pointer(&array, c"arrow_array")?)?
            }))
        } else {
            Ok(Texts::List(object.extract()?))
        }
    }
}

fn pointer<T>(capsule: &Bound<'_, PyAny>, name: &CStr) -> PyResult<*mut T> {
    // SAFETY: the call checks that the object is a capsule of this name.
    let pointer = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), name.as_ptr()) };
    if pointer.is_null() { Err(PyErr::fetch(capsule.py())) } else { Ok(pointer.cast()) }
}

impl Texts {
    fn strings(&self) -> Result<Vec<&str>, Error> {
        match self {
            Texts::List(list) => Ok(list.iter().map(|text| &**text).collect()),
            Texts::Arrow(column) => column.strings(),
        }
    }
}

#[pyclass(frozen, module = "raychat_bpe")]
struct Counts(crate::Counts);

#[pymethods]
impl Counts {
    #[new]
    #[pyo3(signature = (texts, pattern, num_threads = None))]
    fn new(py: Python<'_>, texts: Texts, pattern: &str, num_threads: Option<usize>) -> PyResult<Counts> {
        Ok(Counts(py.detach(|| crate::count(&texts.strings()?, pattern, num_threads))?))
    }

    #[staticmethod]
    fn from_sorted(py: Python<'_>, parts: Vec<Bound<'_, PyBytes>>) -> PyResult<Counts> {
        let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
        Ok(Counts(py.detach(|| crate::Counts::from_sorted(&parts))?))
    }

    #[pyo3(signature = (num_parts = 1))]
    fn to_sorted<'py>(&self, py: Python<'py>, num_parts: usize) -> Vec<Bound<'py, PyBytes>> {
        py.detach(|| self.0.to_sorted(num_parts)).iter().map(|part| PyBytes::new(py, part)).collect()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }
}

#[pyfunction]
#[pyo3(signature = (parts, min_count = 1))]
fn merge<'py>(
    py: Python<'py>,
    parts: Vec<Bound<'py, PyBytes>>,
    min_count: i64,
) -> PyResult<(Bound<'py, PyBytes>, u64, i64)> {
    let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
    let (merged, cut) = py.detach(|| crate::merge(&parts, min_count))?;
    Ok((PyBytes::new(py, &merged), cut.words, cut.occurrences))
}

#[pyfunction]
fn train<'py>(py: Python<'py>, counts: &Bound<'py, Counts>, vocab_size: usize) -> PyResult<Bound<'py, PyList>> {
    let counts = &counts.get().0;
    let tokens = py.detach(|| crate::train(counts, vocab_size))?;
    PyList::new(py, tokens.iter().map(|token| PyBytes::new(py, token)))
}

#[pyclass(frozen, name = "Encoder", module = "raychat_bpe")]
struct PyEncoder {
    inner: Inner,
    specials: Vec<(String, u32)>,
}

/// The encoder with the smallest id type that fits.
enum Inner {
    U16(Encoder<u16>),
    U32(Encoder<u32>),
}

#[pymethods]
impl PyEncoder {
    #[new]
    fn new(
        py: Python<'_>,
        ranks: &Bound<'_, PyDict>,
        specials: &Bound<'_, PyDict>,
        pattern: &str,
    ) -> PyResult<PyEncoder> {
        let tokens: Vec<(Vec<u8>, u32)> = ranks
            .iter()
            .map(|(token, id)| Ok((token.cast::<PyBytes>()?.as_bytes().to_vec(), id.extract()?)))
            .collect::<PyResult<_>>()?;
        let specials: Vec<(String, u32)> =
            specials.iter().map(|(name, id)| Ok((name.extract()?, id.extract()?))).collect::<PyResult<_>>()?;
        let ids = || tokens.iter().map(|(_, id)| *id).chain(specials.iter().map(|(_, id)| *id));
        let small = ids().all(|id| (id as u64) < u16::NUM);
        let tokens: Vec<(&[u8], u32)> = tokens.iter().map(|(token, id)| (token.as_slice(), *id)).collect();
        let inner = py.detach(|| {
            Ok::<_, Error>(match small {
                true => Inner::U16(Encoder::new(&tokens, pattern)?),
                false => Inner::U32(Encoder::new(&tokens, pattern)?),
            })
        })?;
        Ok(PyEncoder { inner, specials })
    }

    fn encode<'py>(&self, py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyList>> {
        match &self.inner {
            Inner::U16(encoder) => encode(py, encoder, text),
            Inner::U32(encoder) => encode(py, encoder, text),
        }
    }

    #[pyo3(signature = (texts, first = None, num_threads = None))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Texts,
        first: Option<&str>,
        num_threads: Option<usize>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let first = first.map(|name| self.special(name)).transpose()?;
        match &self.inner {
            Inner::U16(encoder) => encode_batch(py, encoder, texts, first, num_threads),
            Inner::U32(encoder) => encode_batch(py, encoder, texts, first, num_threads),
        }
    }
}

impl PyEncoder {
    fn special(&self, name: &str) -> PyResult<u32> {
        let found = self.specials.iter().find(|(special, _)| special == name);
        found.map(|(_, id)| *id).ok_or_else(|| PyValueError::new_err(format!("there is no special token {name:?}")))
    }
}

fn encode<'py, I: Id + Into<u32>>(py: Python<'py>, encoder: &Encoder<I>, text: &str) -> PyResult<Bound<'py, PyList>> {
    let mut ids: Vec<I> = Vec::new();
    py.detach(|| encoder.encode(text, &mut ids))?;
    PyList::new(py, ids.into_iter().map(Into::<u32>::into))
}

fn encode_batch<'py, I: Id + Element>(
    py: Python<'py>,
    encoder: &Encoder<I>,
    texts: Texts,
    first: Option<u32>,
    num_threads: Option<usize>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let encoded = py.detach(|| encoder.encode_batch(&texts.strings()?, first.map(I::new), num_threads))?;
    Ok((encoded.ids.into_pyarray(py).into_any(), encoded.offsets.into_pyarray(py).into_any()))
}

/// Byte-level byte-pair encoding in Rust.
#[pymodule]
fn raychat_bpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Counts>()?;
    module.add_class::<PyEncoder>()?;
    module.add_function(wrap_pyfunction!(merge, module)?)?;
    module.add_function(wrap_pyfunction!(train, module)?)
}

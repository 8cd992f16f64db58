//! Read string columns through Arrow's C data interface, without copying them.
//!
//! Source: <https://arrow.apache.org/docs/format/CDataInterface.html> and, for streams,
//! <https://arrow.apache.org/docs/format/CStreamInterface.html>.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::{ptr, slice, str};

use crate::Error;

/// `struct ArrowSchema`: the type of a column.
#[repr(C)]
pub struct Schema {
    format: *const c_char,
    name: *const c_char,
    metadata: *const c_char,
    flags: i64,
    n_children: i64,
    children: *mut *mut Schema,
    dictionary: *mut Schema,
    release: Option<unsafe extern "C" fn(*mut Schema)>,
    private_data: *mut c_void,
}

/// `struct ArrowArray`: the data of a column.
#[repr(C)]
pub struct Array {
    length: i64,
    null_count: i64,
    offset: i64,
    n_buffers: i64,
    n_children: i64,
    buffers: *mut *const c_void,
    children: *mut *mut Array,
    dictionary: *mut Array,
    release: Option<unsafe extern "C" fn(*mut Array)>,
    private_data: *mut c_void,
}

/// `struct ArrowArrayStream`: a column in chunks.
#[repr(C)]
pub struct Stream {
    get_schema: Option<unsafe extern "C" fn(*mut Stream, *mut Schema) -> c_int>,
    get_next: Option<unsafe extern "C" fn(*mut Stream, *mut Array) -> c_int>,
    get_last_error: Option<unsafe extern "C" fn(*mut Stream) -> *const c_char>,
    release: Option<unsafe extern "C" fn(*mut Stream)>,
    private_data: *mut c_void,
}

/// Release a struct of the interface, once, when it goes out of scope.
macro_rules! released_when_dropped {
    ($($name:ident),*) => {$(
        impl Drop for $name {
            fn drop(&mut self) {
                if let Some(release) = self.release {
                    // SAFETY: a struct that has its release callback has not been released yet.
                    unsafe { release(self) }
                }
            }
        }
    )*};
}

released_when_dropped!(Schema, Array, Stream);

// SAFETY: the data are read only, and the interface allows any thread to release them.
unsafe impl Send for Array {}
unsafe impl Sync for Array {}

/// The chunks of a string column.
pub struct Column {
    chunks: Vec<(Array, Layout)>,
}

/// How a string array stores where its strings are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Offsets32,
    Offsets64,
    Views,
}

impl Column {
    /// Take over one array.
    ///
    /// # Safety
    /// An exporter of the C data interface has filled both structs. They are moved out of and count as released.
    pub unsafe fn from_array(schema: *mut Schema, array: *mut Array) -> Result<Column, Error> {
        // SAFETY: the caller's promise.
        let (schema, array) = unsafe { (take(schema, |s| s.release = None), take(array, |a| a.release = None)) };
        Ok(Column { chunks: vec![(array, Layout::of(&schema)?)] })
    }

    /// Take over a stream and read it to its end.
    ///
    /// # Safety
    /// An exporter of the C stream interface has filled the struct. It is moved out of and counts as released.
    pub unsafe fn from_stream(stream: *mut Stream) -> Result<Column, Error> {
        // SAFETY: the caller's promise; the callbacks run on their own stream, before its release.
        unsafe {
            let mut stream = take(stream, |s| s.release = None);
            let (Some(get_schema), Some(get_next)) = (stream.get_schema, stream.get_next) else {
                return Err(unreadable("the stream has no callbacks"));
            };
            let mut schema: Schema = std::mem::zeroed();
            if get_schema(&mut stream, &mut schema) != 0 {
                return Err(unreadable(&stream.last_error()));
            }
            let layout = Layout::of(&schema)?;
            let mut chunks = Vec::new();
            loop {
                let mut array: Array = std::mem::zeroed();
                if get_next(&mut stream, &mut array) != 0 {
                    return Err(unreadable(&stream.last_error()));
                }
                if array.release.is_none() {
                    return Ok(Column { chunks });
                }
                chunks.push((array, layout));
            }
        }
    }

    /// Return the strings. A null becomes an empty string.
    pub fn strings(&self) -> Result<Vec<&str>, Error> {
        let mut strings = Vec::with_capacity(self.chunks.iter().map(|(array, _)| array.length as usize).sum());
        for (array, layout) in &self.chunks {
            // SAFETY: the exporter guarantees the buffers that the format and the length imply.
            unsafe { array.append_strings(*layout, &mut strings)? };
        }
        Ok(strings)
    }
}

impl Layout {
    fn of(schema: &Schema) -> Result<Layout, Error> {
        if schema.format.is_null() {
            return Err(unreadable("it has no type"));
        }
        // SAFETY: the format is a C string that lives as long as the schema.
        match unsafe { CStr::from_ptr(schema.format) }.to_bytes() {
            b"u" if schema.dictionary.is_null() => Ok(Layout::Offsets32),
            b"U" if schema.dictionary.is_null() => Ok(Layout::Offsets64),
            b"vu" if schema.dictionary.is_null() => Ok(Layout::Views),
            other => Err(unreadable(&format!(
                "expected strings (Arrow formats u, U, vu), got the format {}",
                String::from_utf8_lossy(other)
            ))),
        }
    }
}

impl Stream {
    /// SAFETY: the stream is not released, and one of its callbacks has just failed.
    unsafe fn last_error(&mut self) -> String {
        let message = self.get_last_error.map_or(ptr::null(), |get| unsafe { get(self) });
        if message.is_null() {
            return "its stream failed".into();
        }
        unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
    }
}

impl Array {
    /// SAFETY: the array has this layout.
    unsafe fn append_strings<'a>(&'a self, layout: Layout, strings: &mut Vec<&'a str>) -> Result<(), Error> {
        let (first, len) = (self.offset as usize, self.length as usize);
        for i in first..first + len {
            let bytes = unsafe {
                match layout {
                    _ if self.is_null(i) => &[],
                    Layout::Offsets32 => {
                        let offsets = self.buffer::<i32>(1);
                        self.bytes(2, *offsets.add(i) as usize, *offsets.add(i + 1) as usize)
                    }
                    Layout::Offsets64 => {
                        let offsets = self.buffer::<i64>(1);
                        self.bytes(2, *offsets.add(i) as usize, *offsets.add(i + 1) as usize)
                    }
                    Layout::Views => self.view(i),
                }
            };
            strings.push(str::from_utf8(bytes).map_err(|e| unreadable(&format!("text {i} is not UTF-8: {e}")))?);
        }
        Ok(())
    }

    /// SAFETY: the array holds strings, and `i` is below offset + length.
    unsafe fn is_null(&self, i: usize) -> bool {
        let valid = unsafe { self.buffer::<u8>(0) };
        self.null_count != 0 && !valid.is_null() && unsafe { *valid.add(i / 8) } >> (i % 8) & 1 == 0
    }

    /// SAFETY: the array has this buffer.
    unsafe fn buffer<T>(&self, index: usize) -> *const T {
        unsafe { (*self.buffers.add(index)).cast() }
    }

    /// SAFETY: the array has this buffer, and the buffer has these bytes.
    unsafe fn bytes(&self, buffer: usize, start: usize, end: usize) -> &[u8] {
        if start == end {
            return &[];
        }
        unsafe { slice::from_raw_parts(self.buffer::<u8>(buffer).add(start), end - start) }
    }

    /// Read a view of 16 bytes: the length, then a string of up to 12 bytes, or the first 4 bytes of a longer one, the index
    /// of its buffer and its offset there.
    ///
    /// SAFETY: the array holds views, and `i` is below offset + length.
    unsafe fn view(&self, i: usize) -> &[u8] {
        let view = unsafe { self.buffer::<[u32; 4]>(1).add(i) };
        let [len, _, buffer, offset] = unsafe { *view };
        if len <= 12 {
            return unsafe { slice::from_raw_parts(view.cast::<u8>().add(4), len as usize) };
        }
        unsafe { self.bytes(2 + buffer as usize, offset as usize, offset as usize + len as usize) }
    }
}

/// Move a struct of the interface out of its place; what stays there counts as released.
///
/// SAFETY: the pointer is to a valid struct.
unsafe fn take<T>(from: *mut T, mark_released: impl FnOnce(&mut T)) -> T {
    unsafe {
        let taken = ptr::read(from);
        mark_released(&mut *from);
        taken
    }
}

fn unreadable(why: &str) -> Error {
    Error::Arrow(format!("cannot read the Arrow column: {why}"))
}

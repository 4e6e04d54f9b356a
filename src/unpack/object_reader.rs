//! A reader of a stored object that does not mistake a failed read for damage.

use std::io::{self, BufRead, BufReader, Read};

use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::store::Content;

/// The size of the buffer for files and streams, in bytes.
const READ_BUFFER_SIZE: usize = 64 * 1024;

/// Returns a reader of the `size` bytes of an object. See [`Whole`].
pub(crate) fn object_reader(content: Content, size: u64) -> Box<dyn BufRead> {
    match content {
        Content::Bytes(bytes) => Box::new(Whole::new(io::Cursor::new(bytes), size)),
        Content::File(file) => {
            Box::new(Whole::new(BufReader::with_capacity(READ_BUFFER_SIZE, file), size))
        }
        Content::Stream(bytes) => {
            let bridge = SyncIoBridge::new(StreamReader::new(bytes.read(0..size)));
            Box::new(Whole::new(BufReader::with_capacity(READ_BUFFER_SIZE, InPlace(bridge)), size))
        }
    }
}

/// A reader of an object that reports every failure to read the object to its end.
///
/// A decoder may report a read error of its input as damaged data, and a stream that has failed may
/// end as if it were complete. So this reader repeats its first error on every later read, and an end
/// before the object's last byte is an error. Otherwise a failed read would look like a damaged NAR.
struct Whole<R> {
    inner: R,
    left: u64,
    failed: Option<(io::ErrorKind, String)>,
}

impl<R> Whole<R> {
    fn new(inner: R, size: u64) -> Self {
        Self { inner, left: size, failed: None }
    }

    fn fail(&mut self, error: &io::Error) -> io::Error {
        let (kind, text) = (error.kind(), crate::logging::with_causes(error));
        self.failed = Some((kind, text.clone()));
        io::Error::new(kind, text)
    }

    fn check(&self) -> io::Result<()> {
        match &self.failed {
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
            None => Ok(()),
        }
    }
}

impl<R: BufRead> BufRead for Whole<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.check()?;
        loop {
            match self.inner.fill_buf() {
                Ok([]) if self.left > 0 => {
                    let text = format!("the file ended {} bytes early", self.left);
                    return Err(self.fail(&io::Error::new(io::ErrorKind::UnexpectedEof, text)));
                }
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fail(&error)),
            }
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count as u64);
        self.inner.consume(count);
    }
}

impl<R: BufRead> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// Blocks on a stream, on a thread that may block, even if that thread is driving a future.
struct InPlace<R>(R);

impl<R: Read> Read for InPlace<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        tokio::task::block_in_place(|| self.0.read(buffer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails once, then reports the end, like a stream.
    struct FailsOnce(bool);

    impl Read for FailsOnce {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            match std::mem::replace(&mut self.0, true) {
                false => Err(io::Error::other("the server went away")),
                true => Ok(0),
            }
        }
    }

    #[test]
    fn an_error_is_repeated_by_every_later_read() {
        let mut whole = Whole::new(BufReader::new(FailsOnce(false)), 10);
        for _ in 0..3 {
            let error = whole.read(&mut [0; 4]).unwrap_err();
            assert!(error.to_string().contains("the server went away"), "{error}");
        }
    }

    #[test]
    fn an_end_before_the_last_byte_is_an_error() {
        let mut text = String::new();
        let whole = |size| Whole::new(io::Cursor::new(b"12345"), size);
        assert_eq!(whole(5).read_to_string(&mut text).unwrap(), 5);
        let mut short = whole(6);
        for _ in 0..2 {
            let error = short.read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}

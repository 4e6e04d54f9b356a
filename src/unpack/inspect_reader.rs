//! A reader that reports the bytes that its consumer has read to a function, for counting and
//! hashing.

use std::io::{self, BufRead, Read};

/// Passes every byte that is read to a function, once and in order.
pub(crate) struct InspectReader<R, F> {
    inner: R,
    inspect: F,
}

impl<R: BufRead, F: FnMut(&[u8])> InspectReader<R, F> {
    /// Wraps `inner`, which has not been read from yet.
    pub(crate) fn new(inner: R, inspect: F) -> Self {
        Self { inner, inspect }
    }
}

impl<R: BufRead, F: FnMut(&[u8])> Read for InspectReader<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        (self.inspect)(&buffer[..count]);
        Ok(count)
    }
}

impl<R: BufRead, F: FnMut(&[u8])> BufRead for InspectReader<R, F> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        // The buffer is not empty, so `fill_buf` neither reads nor fails.
        if count > 0
            && let Ok(buffer) = self.inner.fill_buf()
        {
            (self.inspect)(&buffer[..count]);
        }
        self.inner.consume(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_passed_once_however_it_is_read() {
        let mut seen = Vec::new();
        let text = b"some bytes that are read in several ways".as_slice();
        let inner = io::BufReader::with_capacity(7, text);
        let mut reader = InspectReader::new(inner, |bytes: &[u8]| seen.extend_from_slice(bytes));
        let mut buffer = [0; 3];
        reader.read_exact(&mut buffer).unwrap();
        reader.fill_buf().unwrap();
        reader.consume(2);
        reader.consume(0);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        drop(reader);
        assert_eq!(seen, text);
    }
}

//! Where bytes come from: a file or standard input, unpacked by what its first bytes say.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};

const BUFFER_BYTES: usize = 256 << 10;
const GZIP: &[u8] = &[0x1f, 0x8b];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const LZ4_FRAME: &[u8] = &[0x04, 0x22, 0x4d, 0x18];

/// How far a source has been read, in the bytes of the file as it lies there.
#[derive(Debug, Clone, Default)]
pub struct Position {
    read: Arc<AtomicU64>,
    /// How many there are, if that is known.
    pub total: Option<u64>,
}

impl Position {
    /// The bytes that were read.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// An input, unpacked.
pub struct Source {
    /// What to call it in messages.
    pub name: String,
    /// Its bytes.
    pub reader: Box<dyn BufRead + Send>,
}

impl Source {
    /// Opens a file; `-` is standard input.
    ///
    /// # Errors
    /// When it cannot be opened or read.
    pub fn open(path: &Path) -> Result<(Source, Position)> {
        if path.as_os_str() == "-" {
            let position = Position::default();
            let source = Source::unpack("standard input".into(), io::stdin(), &position)?;
            return Ok((source, position));
        }
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("open {name}"))?;
        let about = file.metadata().with_context(|| format!("look at {name}"))?;
        anyhow::ensure!(!about.is_dir(), "{name} is a folder, not a file");
        let position = Position {
            total: about.is_file().then_some(about.len()),
            ..Position::default()
        };
        Ok((Source::unpack(name, file, &position)?, position))
    }

    /// Unpacks what a reader gives.
    ///
    /// # Errors
    /// When its first bytes cannot be read.
    pub fn unpack(
        name: String,
        reader: impl Read + Send + 'static,
        position: &Position,
    ) -> Result<Source> {
        let counted = Counted {
            reader,
            read: position.read.clone(),
        };
        let (magic, packed) = peek(counted).with_context(|| format!("read {name}"))?;
        let packed = BufReader::with_capacity(BUFFER_BYTES, packed);
        let reader: Box<dyn BufRead + Send> = if magic.starts_with(GZIP) {
            buffered(flate2::bufread::MultiGzDecoder::new(packed))
        } else if magic.starts_with(XZ) {
            buffered(liblzma::bufread::XzDecoder::new_multi_decoder(packed))
        } else if magic.starts_with(LZ4_FRAME) {
            buffered(Lz4Frames::new(packed))
        } else {
            Box::new(packed)
        };
        Ok(Source { name, reader })
    }
}

fn buffered(reader: impl Read + Send + 'static) -> Box<dyn BufRead + Send> {
    Box::new(BufReader::with_capacity(BUFFER_BYTES, reader))
}

/// Reads the first bytes of a reader and puts them in front again. A pipe may give them one by one.
fn peek<R: Read>(mut reader: R) -> io::Result<(Vec<u8>, impl Read)> {
    let mut magic = Vec::with_capacity(XZ.len());
    reader
        .by_ref()
        .take(XZ.len() as u64)
        .read_to_end(&mut magic)?;
    Ok((magic.clone(), io::Cursor::new(magic).chain(reader)))
}

/// Counts what is read.
struct Counted<R> {
    reader: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// LZ4 frames one behind the other. The decoder ends quietly where a file is cut off between two
/// blocks; here that is an error.
struct Lz4Frames<R: BufRead> {
    decoder: lz4_flex::frame::FrameDecoder<EndSeen<R>>,
    ended: bool,
}

/// Notes whether somebody read into the end.
struct EndSeen<R> {
    reader: R,
    seen: bool,
}

impl<R: Read> Read for EndSeen<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.seen |= n == 0 && !buffer.is_empty();
        Ok(n)
    }
}

impl<R: BufRead> Lz4Frames<R> {
    fn new(reader: R) -> Self {
        let reader = EndSeen {
            reader,
            seen: false,
        };
        Lz4Frames {
            decoder: lz4_flex::frame::FrameDecoder::new(reader),
            ended: false,
        }
    }
}

impl<R: BufRead> Read for Lz4Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.ended {
            let n = self.decoder.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            // A frame that ended by its end mark did not touch the end of the file.
            let under = self.decoder.get_mut();
            if under.seen {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the LZ4 frame is cut off",
                ));
            }
            self.ended = under.reader.fill_buf()?.is_empty();
        }
        Ok(0)
    }
}

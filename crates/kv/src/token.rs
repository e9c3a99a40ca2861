//! Tokens: what a session has seen, so that a later read sees no less.

use crate::{Error, ErrorKind, Result, Version};

/// Where a token is valid: one namespace of one incarnation of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Domain {
    /// The cluster's id.
    pub cluster: u128,
    /// The namespace's id.
    pub namespace: u32,
    /// Raised by every restore from a backup.
    pub incarnation: u32,
}

/// A version within a [`Domain`]. Bytes: format (1) cluster (16) namespace (4) incarnation (4)
/// version (8), big-endian; the string form is their hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    /// Where it is valid.
    pub domain: Domain,
    /// The version that was seen or written.
    pub version: Version,
}

const FORMAT: u8 = 1;
const LEN: usize = 33;

impl Token {
    /// The token as bytes.
    pub fn to_bytes(self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[0] = FORMAT;
        out[1..17].copy_from_slice(&self.domain.cluster.to_be_bytes());
        out[17..21].copy_from_slice(&self.domain.namespace.to_be_bytes());
        out[21..25].copy_from_slice(&self.domain.incarnation.to_be_bytes());
        out[25..33].copy_from_slice(&self.version.to_be_bytes());
        out
    }

    /// Reads what [`Token::to_bytes`] wrote; anything else is an error.
    pub fn from_bytes(bytes: &[u8]) -> Result<Token> {
        let bytes: &[u8; LEN] = bytes.try_into().map_err(|_| {
            invalid(format!(
                "a token has {LEN} bytes, this one has {}",
                bytes.len()
            ))
        })?;
        if bytes[0] != FORMAT {
            return Err(invalid(format!(
                "token format {} is not known here",
                bytes[0]
            )));
        }
        fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
            let mut out = [0; N];
            out.copy_from_slice(&bytes[at..at + N]);
            out
        }
        Ok(Token {
            domain: Domain {
                cluster: u128::from_be_bytes(part(bytes, 1)),
                namespace: u32::from_be_bytes(part(bytes, 17)),
                incarnation: u32::from_be_bytes(part(bytes, 21)),
            },
            version: u64::from_be_bytes(part(bytes, 25)),
        })
    }

    /// Reads the string form.
    pub fn parse(text: &str) -> Result<Token> {
        let text = text.trim();
        if !text.is_ascii() || !text.len().is_multiple_of(2) {
            return Err(invalid("a token is written in hex".into()));
        }
        let bytes: Option<Vec<u8>> = (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok())
            .collect();
        Token::from_bytes(&bytes.ok_or_else(|| invalid("a token is written in hex".into()))?)
    }

    /// Fails unless the token belongs to `domain`.
    pub fn check(&self, domain: &Domain) -> Result<()> {
        if self.domain == *domain {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::WrongDomain,
            "the token is of another cluster, namespace or restore: drop it and read again",
        ))
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_bytes()
            .iter()
            .try_for_each(|b| write!(f, "{b:02x}"))
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, message)
}

//! x
#![allow(missing_docs)]
pub mod core;
mod error;
mod version;
pub use error::{Error, ErrorKind, Result};
pub use version::{Need, Version};

//! The bugs that are planted in the product, each behind a switch.

/// A planted bug.
#[derive(Debug, Clone, Copy)]
pub struct Bug {
    /// Its name, as the code asks for it.
    pub name: &'static str,
    /// What it is, and whose bug it was.
    pub what: &'static str,
}

/// All of them.
pub const BUGS: &[Bug] = &[];

//! The machine by itself: scripts, and random interleavings.

mod interleavings;
mod scripts;

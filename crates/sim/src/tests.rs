//! The checkers reject what they must and accept what they may.

//! The contract of Quorate: keys, versions, read levels, tokens, the Kv trait and its errors

//! Generated wire code and its conversions to and from kv types

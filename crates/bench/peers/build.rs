//! RocksDB is the system's: Debian's package `librocksdb-dev`.

fn main() {
    println!("cargo:rustc-link-lib=dylib=rocksdb");
    println!("cargo:rerun-if-changed=build.rs");
}

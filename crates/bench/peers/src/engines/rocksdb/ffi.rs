//! The part of `rocksdb/c.h` that the workloads use.

use std::ffi::{c_char, c_int, c_uchar, c_void};

macro_rules! opaque {
    ($($name:ident),*) => { $(
        #[repr(C)]
        pub struct $name { _private: [u8; 0] }
    )* };
}

opaque!(
    Db,
    Family,
    Options,
    ReadOptions,
    WriteOptions,
    TableOptions,
    Cache,
    Filter,
    Slice,
    Iterator,
    Transform
);

pub const LZ4: c_int = 4;

unsafe extern "C" {
    pub fn rocksdb_free(ptr: *mut c_void);
    pub fn rocksdb_options_create() -> *mut Options;
    pub fn rocksdb_options_set_create_if_missing(options: *mut Options, value: c_uchar);
    pub fn rocksdb_options_set_create_missing_column_families(
        options: *mut Options,
        value: c_uchar,
    );
    pub fn rocksdb_options_set_block_based_table_factory(
        options: *mut Options,
        table: *mut TableOptions,
    );
    pub fn rocksdb_options_set_write_buffer_size(options: *mut Options, bytes: usize);
    pub fn rocksdb_options_set_max_write_buffer_number(options: *mut Options, number: c_int);
    pub fn rocksdb_options_set_max_background_jobs(options: *mut Options, number: c_int);
    pub fn rocksdb_options_set_compression(options: *mut Options, kind: c_int);
    pub fn rocksdb_options_set_min_level_to_compress(options: *mut Options, level: c_int);
    pub fn rocksdb_options_set_enable_blob_files(options: *mut Options, value: c_uchar);
    pub fn rocksdb_options_set_min_blob_size(options: *mut Options, bytes: u64);
    pub fn rocksdb_options_set_enable_blob_gc(options: *mut Options, value: c_uchar);
    pub fn rocksdb_options_set_prefix_extractor(options: *mut Options, prefix: *mut Transform);
    pub fn rocksdb_slicetransform_create_fixed_prefix(bytes: usize) -> *mut Transform;
    pub fn rocksdb_block_based_options_create() -> *mut TableOptions;
    pub fn rocksdb_block_based_options_set_filter_policy(
        table: *mut TableOptions,
        filter: *mut Filter,
    );
    pub fn rocksdb_block_based_options_set_block_cache(table: *mut TableOptions, cache: *mut Cache);
    pub fn rocksdb_filterpolicy_create_bloom_full(bits_per_key: f64) -> *mut Filter;
    pub fn rocksdb_cache_create_lru(bytes: usize) -> *mut Cache;
    pub fn rocksdb_open_column_families(
        options: *const Options,
        path: *const c_char,
        count: c_int,
        names: *const *const c_char,
        each: *const *const Options,
        families: *mut *mut Family,
        error: *mut *mut c_char,
    ) -> *mut Db;
    pub fn rocksdb_column_family_handle_destroy(family: *mut Family);
    pub fn rocksdb_close(db: *mut Db);
    pub fn rocksdb_writeoptions_create() -> *mut WriteOptions;
    pub fn rocksdb_writeoptions_set_sync(options: *mut WriteOptions, value: c_uchar);
    pub fn rocksdb_readoptions_create() -> *mut ReadOptions;
    pub fn rocksdb_readoptions_set_prefix_same_as_start(options: *mut ReadOptions, value: c_uchar);
    pub fn rocksdb_put_cf(
        db: *mut Db,
        options: *const WriteOptions,
        family: *mut Family,
        key: *const c_char,
        key_len: usize,
        value: *const c_char,
        value_len: usize,
        error: *mut *mut c_char,
    );
    pub fn rocksdb_delete_cf(
        db: *mut Db,
        options: *const WriteOptions,
        family: *mut Family,
        key: *const c_char,
        key_len: usize,
        error: *mut *mut c_char,
    );
    pub fn rocksdb_delete_range_cf(
        db: *mut Db,
        options: *const WriteOptions,
        family: *mut Family,
        from: *const c_char,
        from_len: usize,
        to: *const c_char,
        to_len: usize,
        error: *mut *mut c_char,
    );
    pub fn rocksdb_get_pinned_cf(
        db: *mut Db,
        options: *const ReadOptions,
        family: *mut Family,
        key: *const c_char,
        key_len: usize,
        error: *mut *mut c_char,
    ) -> *mut Slice;
    pub fn rocksdb_pinnableslice_value(slice: *const Slice, len: *mut usize) -> *const c_char;
    pub fn rocksdb_pinnableslice_destroy(slice: *mut Slice);
    pub fn rocksdb_batched_multi_get_cf(
        db: *mut Db,
        options: *const ReadOptions,
        family: *mut Family,
        count: usize,
        keys: *const *const c_char,
        key_lens: *const usize,
        values: *mut *mut Slice,
        errors: *mut *mut c_char,
        sorted: bool,
    );
    pub fn rocksdb_create_iterator_cf(
        db: *mut Db,
        options: *const ReadOptions,
        family: *mut Family,
    ) -> *mut Iterator;
    pub fn rocksdb_iter_destroy(iter: *mut Iterator);
    pub fn rocksdb_iter_valid(iter: *const Iterator) -> c_uchar;
    pub fn rocksdb_iter_seek(iter: *mut Iterator, key: *const c_char, len: usize);
    pub fn rocksdb_iter_seek_for_prev(iter: *mut Iterator, key: *const c_char, len: usize);
    pub fn rocksdb_iter_seek_to_last(iter: *mut Iterator);
    pub fn rocksdb_iter_next(iter: *mut Iterator);
    pub fn rocksdb_iter_prev(iter: *mut Iterator);
    pub fn rocksdb_iter_key(iter: *const Iterator, len: *mut usize) -> *const c_char;
    pub fn rocksdb_iter_value(iter: *const Iterator, len: *mut usize) -> *const c_char;
    pub fn rocksdb_compact_range_cf(
        db: *mut Db,
        family: *mut Family,
        from: *const c_char,
        from_len: usize,
        to: *const c_char,
        to_len: usize,
    );
}

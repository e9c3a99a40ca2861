//! RocksDB, by its C interface, as the system's package has it.
//!
//! Versions are laid over it in the usual way: a key carries the version, inverted, at its end, and a read
//! at a version is a seek, helped by a filter over the keys without it.

mod ffi;

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::ptr;

use anyhow::{Result, bail};

use super::{Found, Setup, Store, look};

/// The length of keys in the versioned workload, which the filter covers.
const VERSIONED_KEY_BYTES: usize = 16;
const BACKGROUND_JOBS: c_int = 2;
const WRITE_BUFFERS: c_int = 4;

pub struct RocksDb {
    db: *mut ffi::Db,
    families: Vec<*mut ffi::Family>,
    read: *mut ffi::ReadOptions,
    /// For seeks within one key's versions.
    read_prefix: *mut ffi::ReadOptions,
    write: *mut ffi::WriteOptions,
    write_synced: *mut ffi::WriteOptions,
}

// SAFETY: RocksDB's handles may be used from many threads at once; options are only read.
unsafe impl Send for RocksDb {}
unsafe impl Sync for RocksDb {}

/// Calls with a place for an error text, and turns that into a result.
fn checked<T>(call: impl FnOnce(*mut *mut c_char) -> T) -> Result<T> {
    let mut error: *mut c_char = ptr::null_mut();
    let done = call(&raw mut error);
    if error.is_null() {
        return Ok(done);
    }
    // SAFETY: RocksDB gave a string that is ours to free.
    let text = unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        ffi::rocksdb_free(error.cast());
        text
    };
    bail!("rocksdb: {text}")
}

fn chars(bytes: &[u8]) -> *const c_char {
    bytes.as_ptr().cast()
}

/// SAFETY: the caller owns nothing that RocksDB frees; all options live as long as the process.
unsafe fn options(setup: &Setup) -> *mut ffi::Options {
    // SAFETY: every handle comes from RocksDB and goes back to it once.
    unsafe {
        let table = ffi::rocksdb_block_based_options_create();
        ffi::rocksdb_block_based_options_set_filter_policy(
            table,
            ffi::rocksdb_filterpolicy_create_bloom_full(10.0),
        );
        let cache = ffi::rocksdb_cache_create_lru(setup.cache_bytes as usize);
        ffi::rocksdb_block_based_options_set_block_cache(table, cache);
        let options = ffi::rocksdb_options_create();
        ffi::rocksdb_options_set_create_if_missing(options, 1);
        ffi::rocksdb_options_set_create_missing_column_families(options, 1);
        ffi::rocksdb_options_set_block_based_table_factory(options, table);
        ffi::rocksdb_options_set_write_buffer_size(options, setup.write_buffer_bytes as usize);
        ffi::rocksdb_options_set_max_write_buffer_number(options, WRITE_BUFFERS);
        ffi::rocksdb_options_set_max_background_jobs(options, BACKGROUND_JOBS);
        ffi::rocksdb_options_set_compression(options, ffi::LZ4);
        ffi::rocksdb_options_set_min_level_to_compress(options, 1);
        if let Some(bytes) = setup.separate_if_asked() {
            ffi::rocksdb_options_set_enable_blob_files(options, 1);
            ffi::rocksdb_options_set_min_blob_size(options, bytes as u64);
            ffi::rocksdb_options_set_enable_blob_gc(options, 1);
        }
        if setup.versioned {
            let prefix = ffi::rocksdb_slicetransform_create_fixed_prefix(VERSIONED_KEY_BYTES);
            ffi::rocksdb_options_set_prefix_extractor(options, prefix);
        }
        options
    }
}

impl RocksDb {
    pub fn open(dir: &Path, setup: &Setup) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let path = CString::new(dir.as_os_str().as_encoded_bytes())?;
        let more = (1..setup.keyspaces).map(|n| CString::new(format!("k{n}")));
        let mut names = vec![CString::new("default")?];
        names.extend(more.collect::<Result<Vec<_>, _>>()?);
        let name_ptrs: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        let mut families = vec![ptr::null_mut(); names.len()];
        // SAFETY: all pointers live through the call.
        unsafe {
            let options = options(setup);
            let each = vec![options.cast_const(); names.len()];
            let db = checked(|error| {
                ffi::rocksdb_open_column_families(
                    options,
                    path.as_ptr(),
                    names.len() as c_int,
                    name_ptrs.as_ptr(),
                    each.as_ptr(),
                    families.as_mut_ptr(),
                    error,
                )
            })?;
            let write_synced = ffi::rocksdb_writeoptions_create();
            ffi::rocksdb_writeoptions_set_sync(write_synced, 1);
            let read_prefix = ffi::rocksdb_readoptions_create();
            ffi::rocksdb_readoptions_set_prefix_same_as_start(read_prefix, 1);
            Ok(RocksDb {
                db,
                families,
                read: ffi::rocksdb_readoptions_create(),
                read_prefix,
                write: ffi::rocksdb_writeoptions_create(),
                write_synced,
            })
        }
    }

    fn put_key(&self, at: u16, key: &[u8], value: &[u8], sync: bool) -> Result<()> {
        let options = if sync { self.write_synced } else { self.write };
        // SAFETY: slices live through the call, which copies them.
        checked(|error| unsafe {
            ffi::rocksdb_put_cf(
                self.db,
                options,
                self.families[at as usize],
                chars(key),
                key.len(),
                chars(value),
                value.len(),
                error,
            );
        })
    }
}

/// An iterator that ends with its scope.
struct Iter(*mut ffi::Iterator);

impl Iter {
    fn valid(&self) -> bool {
        // SAFETY: the iterator lives.
        unsafe { ffi::rocksdb_iter_valid(self.0) != 0 }
    }

    fn key(&self) -> &[u8] {
        let mut len = 0;
        // SAFETY: valid iterators give a slice that lives until they move.
        unsafe {
            let key = ffi::rocksdb_iter_key(self.0, &raw mut len);
            std::slice::from_raw_parts(key.cast(), len)
        }
    }

    fn value(&self) -> &[u8] {
        let mut len = 0;
        // SAFETY: as for keys.
        unsafe {
            let value = ffi::rocksdb_iter_value(self.0, &raw mut len);
            std::slice::from_raw_parts(value.cast(), len)
        }
    }
}

impl Drop for Iter {
    fn drop(&mut self) {
        // SAFETY: ours.
        unsafe { ffi::rocksdb_iter_destroy(self.0) }
    }
}

fn versioned_key(key: &[u8], version: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 8);
    out.extend_from_slice(key);
    out.extend_from_slice(&(!version).to_be_bytes());
    out
}

impl Store for RocksDb {
    fn put(&self, at: u16, key: &[u8], value: &[u8], sync: bool) -> Result<()> {
        self.put_key(at, key, value, sync)
    }

    fn delete(&self, at: u16, key: &[u8]) -> Result<()> {
        // SAFETY: as for put.
        checked(|error| unsafe {
            let family = self.families[at as usize];
            ffi::rocksdb_delete_cf(self.db, self.write, family, chars(key), key.len(), error);
        })
    }

    fn get(&self, at: u16, key: &[u8]) -> Result<Found> {
        // SAFETY: the pinned slice is read before it is freed.
        let pinned = checked(|error| unsafe {
            let family = self.families[at as usize];
            ffi::rocksdb_get_pinned_cf(self.db, self.read, family, chars(key), key.len(), error)
        })?;
        if pinned.is_null() {
            return Ok(None);
        }
        let mut len = 0;
        // SAFETY: as above.
        unsafe {
            ffi::rocksdb_pinnableslice_value(pinned, &raw mut len);
            ffi::rocksdb_pinnableslice_destroy(pinned);
        }
        Ok(Some(len))
    }

    fn multi_get(&self, at: u16, keys: &[Vec<u8>]) -> Result<usize> {
        let ptrs: Vec<_> = keys.iter().map(|key| chars(key)).collect();
        let lens: Vec<_> = keys.iter().map(Vec::len).collect();
        let mut values = vec![ptr::null_mut(); keys.len()];
        let mut errors: Vec<*mut c_char> = vec![ptr::null_mut(); keys.len()];
        // SAFETY: all arrays have one place for each key.
        unsafe {
            ffi::rocksdb_batched_multi_get_cf(
                self.db,
                self.read,
                self.families[at as usize],
                keys.len(),
                ptrs.as_ptr(),
                lens.as_ptr(),
                values.as_mut_ptr(),
                errors.as_mut_ptr(),
                false,
            );
        }
        let mut found = 0;
        for value in values {
            if !value.is_null() {
                found += 1;
                // SAFETY: given to us.
                unsafe { ffi::rocksdb_pinnableslice_destroy(value) };
            }
        }
        if errors.iter().any(|error| !error.is_null()) {
            bail!("rocksdb: a key of a multi-get failed");
        }
        Ok(found)
    }

    fn scan(&self, at: u16, from: &[u8], limit: usize, reverse: bool) -> Result<(usize, usize)> {
        let (mut count, mut bytes) = (0, 0);
        // SAFETY: the iterator lives in this scope and is moved only while valid.
        unsafe {
            let iter = Iter(ffi::rocksdb_create_iterator_cf(
                self.db,
                self.read,
                self.families[at as usize],
            ));
            match (reverse, from.is_empty()) {
                (false, _) => ffi::rocksdb_iter_seek(iter.0, chars(from), from.len()),
                (true, true) => ffi::rocksdb_iter_seek_to_last(iter.0),
                (true, false) => ffi::rocksdb_iter_seek_for_prev(iter.0, chars(from), from.len()),
            }
            while iter.valid() && count < limit {
                bytes += iter.key().len() + look(iter.value());
                count += 1;
                match reverse {
                    false => ffi::rocksdb_iter_next(iter.0),
                    true => ffi::rocksdb_iter_prev(iter.0),
                }
            }
        }
        Ok((count, bytes))
    }

    fn delete_range(&self, at: u16, from: &[u8], to: &[u8]) -> Result<bool> {
        // SAFETY: as for put.
        checked(|error| unsafe {
            ffi::rocksdb_delete_range_cf(
                self.db,
                self.write,
                self.families[at as usize],
                chars(from),
                from.len(),
                chars(to),
                to.len(),
                error,
            );
        })?;
        Ok(true)
    }

    fn put_at(&self, key: &[u8], version: u64, value: &[u8]) -> Result<()> {
        self.put_key(0, &versioned_key(key, version), value, false)
    }

    fn get_at(&self, key: &[u8], version: u64) -> Result<Found> {
        let from = versioned_key(key, version);
        // SAFETY: as for scans.
        unsafe {
            let iter = Iter(ffi::rocksdb_create_iterator_cf(
                self.db,
                self.read_prefix,
                self.families[0],
            ));
            ffi::rocksdb_iter_seek(iter.0, chars(&from), from.len());
            let found = iter.valid() && iter.key().starts_with(key);
            Ok(found.then(|| iter.value().len()))
        }
    }

    fn settle(&self) -> Result<()> {
        for family in &self.families {
            // SAFETY: the whole range, which null stands for.
            unsafe {
                ffi::rocksdb_compact_range_cf(self.db, *family, ptr::null(), 0, ptr::null(), 0);
            }
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        // SAFETY: the last use of the handles.
        unsafe {
            for family in &self.families {
                ffi::rocksdb_column_family_handle_destroy(*family);
            }
            ffi::rocksdb_close(self.db);
        }
        Ok(())
    }
}

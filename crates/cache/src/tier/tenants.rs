//! [`Tenants`]: records of tenants, each within a budget of its own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::Version;
use crate::core::{Left, Records};

/// Whose a key is; `None`: nobody's.
pub type TenantOf = fn(&[u8]) -> Option<&[u8]>;

struct Tenant {
    records: Mutex<Records<Bytes>>,
    /// When it was last used, by a count of uses.
    used: AtomicU64,
}

#[derive(Default)]
struct State {
    tenants: HashMap<Bytes, Tenant>,
    /// Of tenants that were dropped.
    left: Left,
}

/// Some tenants at a time. When there is no room for one more, the one that was not used for the longest is dropped: it
/// begins anew, as if all its records had been evicted.
///
/// What is done to records is done under the lock of the state, so that a tenant that is dropped leaves all of it.
pub(super) struct Tenants {
    of: TenantOf,
    budget_bytes: u64,
    most: usize,
    uses: AtomicU64,
    state: RwLock<State>,
}

impl Tenants {
    /// None, of which at most so many are there at a time.
    pub fn new(of: TenantOf, budget_bytes: u64, most: usize) -> Self {
        Tenants {
            of,
            budget_bytes,
            most,
            uses: AtomicU64::new(0),
            state: RwLock::default(),
        }
    }

    /// Whose a key is.
    pub fn of<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        (self.of)(key)
    }

    /// Does something to a tenant's records, if it is there.
    pub fn peek<T>(&self, tenant: &[u8], act: impl FnOnce(&Records<Bytes>) -> T) -> Option<T> {
        let state = self.state.read();
        let tenant = state.tenants.get(tenant)?;
        self.note_use(tenant);
        Some(act(&tenant.records.lock()))
    }

    /// Does something to a tenant's records, and makes room for it if it is not there.
    pub fn with<T>(&self, name: &[u8], act: impl FnOnce(&mut Records<Bytes>) -> T) -> T {
        let state = self.state.read();
        if let Some(tenant) = state.tenants.get(name) {
            self.note_use(tenant);
            return act(&mut tenant.records.lock());
        }
        drop(state);
        let mut state = self.state.write();
        if !state.tenants.contains_key(name) {
            state.make_room(self.most);
        }
        let left = state.left;
        let new = || Tenant {
            records: Mutex::new(Records::after(self.budget_bytes, left)),
            used: AtomicU64::new(0),
        };
        let name = Bytes::copy_from_slice(name);
        let tenant = state.tenants.entry(name).or_insert_with(new);
        self.note_use(tenant);
        act(tenant.records.get_mut())
    }

    /// Does something to the records of all tenants, and to what is left of those that were dropped.
    pub fn with_all(&self, act: impl Fn(&mut Records<Bytes>), act_left: impl FnOnce(&mut Left)) {
        let mut state = self.state.write();
        let all = state.tenants.values_mut();
        all.for_each(|tenant| act(tenant.records.get_mut()));
        act_left(&mut state.left);
    }

    /// The bytes that records of a tenant take. Asking is no use.
    pub fn bytes_of(&self, tenant: &[u8]) -> u64 {
        let state = self.state.read();
        let tenant = state.tenants.get(tenant);
        tenant.map_or(0, |tenant| tenant.records.lock().size_bytes())
    }

    /// The bytes that records of all tenants take.
    pub fn size_bytes(&self) -> u64 {
        let state = self.state.read();
        let all = state.tenants.values();
        all.map(|tenant| tenant.records.lock().size_bytes()).sum()
    }

    fn note_use(&self, tenant: &Tenant) {
        tenant.used.store(self.uses.fetch_add(1, Relaxed), Relaxed);
    }
}

impl State {
    /// Leaves fewer than `most`.
    fn make_room(&mut self, most: usize) {
        while self.tenants.len() >= most {
            let all = self.tenants.iter();
            let idle = all.min_by_key(|(_, tenant)| tenant.used.load(Relaxed));
            let Some(name) = idle.map(|(name, _)| name.clone()) else {
                return;
            };
            if let Some(tenant) = self.tenants.remove(&name) {
                self.left = self.left.and(tenant.records.into_inner().end());
            }
        }
    }
}

/// What [`Records::clear`] and [`Records::raise`] do, for records to come.
impl Left {
    pub(super) fn clear(&mut self) {
        self.absent.latest = true;
    }

    pub(super) fn raise(&mut self, version: Version) {
        self.base = self.base.max(version);
    }
}

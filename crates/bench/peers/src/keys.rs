//! Keys, values and random numbers, the same for every engine.

/// A fast generator (xorshift64*), one a thread.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

/// The `n`th key: eight bytes of the number, in order, then padding, as db_bench does it.
pub fn key(out: &mut Vec<u8>, n: u64, len: usize) {
    out.clear();
    out.extend_from_slice(&n.to_be_bytes());
    out.resize(len.max(8), b'0');
}

/// Values that compress to about a half.
pub struct Values(Vec<u8>);

impl Values {
    pub fn new() -> Self {
        let mut rng = Rng::new(301);
        let mut pool = Vec::with_capacity(2 << 20);
        while pool.len() < 2 << 20 {
            let piece: Vec<u8> = (0..50)
                .map(|_| b' ' + (rng.next() >> 32) as u8 % 95)
                .collect();
            pool.extend_from_slice(&piece);
            pool.extend_from_slice(&piece);
        }
        Values(pool)
    }

    pub fn get(&self, rng: &mut Rng, len: usize) -> &[u8] {
        let at = rng.below((self.0.len() - len) as u64) as usize;
        &self.0[at..at + len]
    }
}

/// Zipfian numbers below `n` with theta 0.99, scattered over the range, as YCSB has them.
pub struct Zipf {
    n: u64,
    zeta_n: f64,
    eta: f64,
    alpha: f64,
}

const THETA: f64 = 0.99;

impl Zipf {
    pub fn new(n: u64) -> Self {
        let zeta = |n: u64| (1..=n).map(|i| 1.0 / (i as f64).powf(THETA)).sum::<f64>();
        let (zeta_n, zeta_2) = (zeta(n), zeta(2));
        Zipf {
            n,
            zeta_n,
            alpha: 1.0 / (1.0 - THETA),
            eta: (1.0 - (2.0 / n as f64).powf(1.0 - THETA)) / (1.0 - zeta_2 / zeta_n),
        }
    }

    pub fn draw(&self, rng: &mut Rng) -> u64 {
        let u = (rng.next() >> 11) as f64 / (1u64 << 53) as f64;
        let uz = u * self.zeta_n;
        let rank = if uz < 1.0 {
            0
        } else if uz < 1.0 + 0.5_f64.powf(THETA) {
            1
        } else {
            (self.n as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha)) as u64
        };
        // FNV scatters the hot ranks.
        let mut hash = 0xCBF2_9CE4_8422_2325_u64;
        for byte in rank.min(self.n - 1).to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
        }
        hash % self.n
    }
}

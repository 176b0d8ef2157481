//! The FNV-1a hash, 64 bits: for names that every release must make alike, and to tell keys apart for
//! people. Pure; no secret-keeper.

/// The hash of these bytes.
pub fn fnv_1a(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

//! Network addresses in binary, of canonical text, and back.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};

const FAMILY_4: u8 = 2;
const FAMILY_6: u8 = 3;

/// Appends family, bits of the mask, a byte that the server ignores, length and address. A network
/// has no bits behind its mask.
pub fn push(text: &[u8], is_network: bool, out: &mut Vec<u8>) -> Option<()> {
    let text = std::str::from_utf8(text).ok()?;
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let bits: u8 = match bits {
        None => width,
        Some(bits) if bits.starts_with('+') => return None,
        Some(bits) => bits.parse().ok().filter(|bits| *bits <= width)?,
    };
    if is_network && behind(address, bits) != 0 {
        return None;
    }
    let family = if address.is_ipv4() { FAMILY_4 } else { FAMILY_6 };
    out.extend_from_slice(&[family, bits, 0, width / 8]);
    match address {
        IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
    }
    Some(())
}

/// The bits of an address that its mask leaves out.
fn behind(address: IpAddr, bits: u8) -> u128 {
    let number = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    number.checked_shl(u32::from(bits)).unwrap_or(0)
}

/// Appends the text of an address or a network. Only a network always says how long its mask is.
pub fn push_text(value: &[u8], is_network: bool, out: &mut Vec<u8>) -> Option<()> {
    let [family, bits, _, _, address @ ..] = value else { return None };
    let address = match *family {
        FAMILY_4 => IpAddr::V4(<[u8; 4]>::try_from(address).ok()?.into()),
        FAMILY_6 => IpAddr::V6(<[u8; 16]>::try_from(address).ok()?.into()),
        _ => return None,
    };
    // Writing to memory cannot fail.
    let _ = match address {
        // The server writes the last half of these as it writes addresses of the other family.
        IpAddr::V6(address) if (1 << 16..1 << 32).contains(&address.to_bits()) => {
            write!(out, "::{}", Ipv4Addr::from_bits(address.to_bits() as u32))
        }
        _ => write!(out, "{address}"),
    };
    let width = if address.is_ipv4() { 32 } else { 128 };
    if is_network || *bits != width {
        let _ = write!(out, "/{bits}");
    }
    Some(())
}

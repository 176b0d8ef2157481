//! Arrays of one dimension in binary, of canonical text: `{1,NULL,"two words"}`. Others are left to
//! text. Surprise: only what is not in quotes can be NULL.

use std::borrow::Cow;

use super::{Encoding, push_null};

/// Appends the number of dimensions, whether there are NULLs, the type of the elements, their
/// count, the index of the first, and the elements.
pub fn push(text: &[u8], element_type: u32, out: &mut Vec<u8>) -> Option<()> {
    let encoding = Encoding::of(element_type)?;
    let mut rest = text.strip_prefix(b"{")?.strip_suffix(b"}")?;
    let start = out.len();
    push_numbers([0, 0, element_type], out);
    if rest.is_empty() {
        return Some(());
    }
    push_numbers([0, 1], out);
    let (mut count, mut has_null) = (0_u32, 0_u32);
    loop {
        count += 1;
        let (element, after) = element(rest)?;
        match element {
            Some(element) => encoding.push(&element, out)?,
            None => {
                has_null = 1;
                push_null(out);
            }
        }
        rest = match after {
            [b',', after @ ..] => after,
            [] => break,
            _ => return None,
        };
    }
    let dimensions = 1_u32;
    out[start..start + 4].copy_from_slice(&dimensions.to_be_bytes());
    out[start + 4..start + 8].copy_from_slice(&has_null.to_be_bytes());
    out[start + 12..start + 16].copy_from_slice(&count.to_be_bytes());
    Some(())
}

/// An element without its quotes; `None` for NULL.
type Element<'a> = Option<Cow<'a, [u8]>>;

/// The first element, and what follows it.
fn element(text: &[u8]) -> Option<(Element<'_>, &[u8])> {
    if let Some(quoted) = text.strip_prefix(b"\"") {
        let (element, after) = unquoted(quoted)?;
        return Some((Some(element), after));
    }
    let end = text.iter().position(|&byte| byte == b',').unwrap_or(text.len());
    let (element, after) = text.split_at(end);
    let needs_quotes =
        |byte: &u8| matches!(byte, b'{' | b'}' | b'"' | b'\\') || byte.is_ascii_whitespace();
    match element {
        b"NULL" => Some((None, after)),
        _ if element.is_empty() || element.eq_ignore_ascii_case(b"null") => None,
        _ if element.iter().any(needs_quotes) => None,
        _ => Some((Some(Cow::Borrowed(element)), after)),
    }
}

/// What stands before the closing quote, and what follows that.
fn unquoted(text: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let special = |byte: &u8| matches!(byte, b'"' | b'\\');
    let mut at = text.iter().position(special)?;
    if text[at] == b'"' {
        return Some((Cow::Borrowed(&text[..at]), &text[at + 1..]));
    }
    let mut element = text[..at].to_vec();
    loop {
        match *text.get(at)? {
            b'"' => return Some((Cow::Owned(element), &text[at + 1..])),
            b'\\' => {
                element.push(*text.get(at + 1)?);
                at += 2;
            }
            byte => {
                element.push(byte);
                at += 1;
            }
        }
    }
}

fn push_numbers<const COUNT: usize>(numbers: [u32; COUNT], out: &mut Vec<u8>) {
    for number in numbers {
        out.extend_from_slice(&number.to_be_bytes());
    }
}

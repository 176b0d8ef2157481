//! Arrays of one dimension in binary, of canonical text: `{1,NULL,"two words"}`; others are left to
//! text. And back, of any number of dimensions. Surprise: only what is not in quotes can be NULL.

use std::borrow::Cow;
use std::io::Write as _;

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
    match element {
        b"NULL" => Some((None, after)),
        _ if needs_quotes(element) => None,
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

/// Appends the text of an array.
pub fn push_text(value: &[u8], element_type: u32, out: &mut Vec<u8>) -> Option<()> {
    let encoding = Encoding::of(element_type)?;
    let ([dimensions, _, found_type], mut rest) = numbers(value)?;
    // The server has no more dimensions.
    if found_type != element_type || dimensions > 6 {
        return None;
    }
    let (mut lengths, mut bounds, mut is_plain) = (Vec::new(), Vec::new(), true);
    for _ in 0..dimensions {
        let ([length, first], after) = numbers(rest)?;
        let first = i64::from(first.cast_signed());
        // Writing to memory cannot fail.
        let _ = write!(bounds, "[{first}:{}]", first + i64::from(length) - 1);
        is_plain &= first == 1;
        lengths.push(length as usize);
        rest = after;
    }
    if !is_plain {
        out.extend_from_slice(&bounds);
        out.push(b'=');
    }
    let count = lengths.iter().try_fold(1, |count: usize, length| count.checked_mul(*length))?;
    if lengths.is_empty() || count == 0 {
        out.extend_from_slice(b"{}");
        return rest.is_empty().then_some(());
    }
    // How many elements a brace of each dimension holds.
    let blocks: Vec<usize> = (0..lengths.len()).map(|at| lengths[at..].iter().product()).collect();
    let mut text = Vec::new();
    for place in 1..=count {
        let begun = blocks.iter().filter(|block| (place - 1) % **block == 0);
        out.extend(begun.map(|_| b'{'));
        let ([length], after) = numbers(rest)?;
        rest = match usize::try_from(length.cast_signed()) {
            Ok(length) => {
                let (element, after) = after.split_at_checked(length)?;
                text.clear();
                encoding.push_text(element, &mut text)?;
                push_element(&text, out);
                after
            }
            Err(_) => {
                out.extend_from_slice(b"NULL");
                after
            }
        };
        let ended = blocks.iter().filter(|block| place % **block == 0);
        out.extend(ended.map(|_| b'}'));
        if place < count {
            out.push(b',');
        }
    }
    rest.is_empty().then_some(())
}

/// Appends the text of an element, in quotes if it needs them.
fn push_element(text: &[u8], out: &mut Vec<u8>) {
    if !needs_quotes(text) {
        out.extend_from_slice(text);
        return;
    }
    out.push(b'"');
    for &byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// Whether the text of an element is something else without quotes.
fn needs_quotes(text: &[u8]) -> bool {
    let is_special = |byte: &u8| {
        // The last ones are what an array takes for a space.
        matches!(byte, b'{' | b'}' | b'"' | b'\\' | b',' | b' ' | 0x09..=0x0d)
    };
    text.is_empty() || text.eq_ignore_ascii_case(b"null") || text.iter().any(is_special)
}

/// The numbers that bytes begin with, and what follows them.
fn numbers<const COUNT: usize>(bytes: &[u8]) -> Option<([u32; COUNT], &[u8])> {
    let (numbers, rest) = bytes.split_at_checked(4 * COUNT)?;
    let (numbers, _) = numbers.as_chunks();
    let numbers = <[[u8; 4]; COUNT]>::try_from(numbers).ok()?;
    Some((numbers.map(u32::from_be_bytes), rest))
}

fn push_numbers<const COUNT: usize>(numbers: [u32; COUNT], out: &mut Vec<u8>) {
    for number in numbers {
        out.extend_from_slice(&number.to_be_bytes());
    }
}

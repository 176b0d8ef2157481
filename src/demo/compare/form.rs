//! The form that both sides' values are brought into before they are compared, so that `0.10` and
//! `1e-1` are one number but `1.5` and `1.50` are two decimals.

/// How values of a column are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `t` or `f`.
    Bool,
    /// The shortest digits that name the number.
    Float32,
    /// The same.
    Float64,
    /// `\x` and hexadecimal digits.
    Bytes,
    /// A date and time, or a time: without the trailing zeros of its fraction.
    Time,
    /// The same, an instant: in UTC, with `+00` at its end.
    Instant,
    /// As it is.
    Plain,
}

/// A column of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub name: String,
    /// The type as this side's catalog calls it.
    pub native: String,
    pub form: Form,
}

/// What one side's SQL has written, in the common form.
pub(super) fn canonical(form: Form, text: String) -> String {
    match form {
        Form::Bool if text == "1" => "t".into(),
        Form::Bool if text == "0" => "f".into(),
        Form::Float32 => text.parse().map_or(text, |number: f32| format!("{number:?}")),
        Form::Float64 => text.parse().map_or(text, |number: f64| format!("{number:?}")),
        Form::Time | Form::Instant => without_trailing_zeros(text),
        Form::Bool | Form::Bytes | Form::Plain => text,
    }
}

/// `12:00:00.500000+00` becomes `12:00:00.5+00`.
fn without_trailing_zeros(text: String) -> String {
    let Some((whole, rest)) = text.split_once('.') else { return text };
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, zone) = rest.split_at(end);
    match digits.trim_end_matches('0') {
        "" => format!("{whole}{zone}"),
        digits => format!("{whole}.{digits}{zone}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(form: Form, one: &str, other: &str) -> bool {
        canonical(form, one.into()) == canonical(form, other.into())
    }

    #[test]
    fn floats_are_compared_as_numbers_and_signed_zero_is_kept() {
        assert!(same(Form::Float64, "0.1", "1e-1"));
        assert!(same(Form::Float64, "-Infinity", "-inf"));
        assert!(same(Form::Float64, "NaN", "NaN"));
        assert!(same(Form::Float32, "0.1", "0.10000000149011612"));
        assert!(!same(Form::Float64, "0.1", "0.10000000149011612"));
        assert!(!same(Form::Float64, "0", "-0"));
        assert!(!same(Form::Plain, "1.5", "1.50"));
    }

    #[test]
    fn only_the_zeros_after_the_last_digit_of_a_fraction_go() {
        assert!(same(Form::Instant, "2024-02-29 12:00:00.500000+00", "2024-02-29 12:00:00.5+00"));
        assert!(same(Form::Time, "-838:59:59.000000", "-838:59:59"));
        assert!(!same(Form::Time, "12:00:00.05", "12:00:00.5"));
        assert!(!same(Form::Time, "12:00:10", "12:00:1"));
        assert_eq!(
            canonical(Form::Time, "0044-03-15 12:00:00.10 BC".into()),
            "0044-03-15 12:00:00.1 BC"
        );
    }
}

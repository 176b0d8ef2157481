//! The canonical text of floats: the shortest digits that read back as the same number, laid out
//! as PostgreSQL lays them out: `0.0001`, `1e-05`, `1e+20`.

/// A single's text. It has a decimal point up to six digits before it.
#[must_use]
pub fn single_text(value: f32) -> String {
    laid_out(&format!("{value:e}"), value.to_string(), 6)
}

/// A double's text. It has a decimal point up to fifteen digits before it.
#[must_use]
pub fn double_text(value: f64) -> String {
    laid_out(&format!("{value:e}"), value.to_string(), 15)
}

fn laid_out(scientific: &str, plain: String, exponent_max: i32) -> String {
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific.replace("inf", "Infinity");
    };
    match exponent.parse::<i32>() {
        Ok(exponent) if exponent < -4 => format!("{digits}e-{:02}", -exponent),
        Ok(exponent) if exponent >= exponent_max => format!("{digits}e+{exponent:02}"),
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_laid_out_as_postgresql_does() {
        for text in ["0", "-0", "0.1", "0.0001", "1e-05", "1e+15", "100000000000000", "5e-324"] {
            assert_eq!(double_text(text.parse().unwrap()), text);
        }
        for text in ["0.1", "1e+06", "999999", "1.234567e+06", "1e-45", "3.4028235e+38", "-0"] {
            assert_eq!(single_text(text.parse().unwrap()), text);
        }
        assert_eq!(double_text(f64::NAN), "NaN");
        assert_eq!(double_text(f64::NEG_INFINITY), "-Infinity");
    }
}

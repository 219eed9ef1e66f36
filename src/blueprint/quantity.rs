//! Kubernetes quantities ("500m", "1.5Gi", "2e3") in exact integer arithmetic.
//!
//! The grammar and the rounding (up, away from zero) are upstream's: `k8s.io/apimachinery/pkg/api/resource/quantity.go`.

use serde_json::Value;

const NANO: i128 = 1_000_000_000;

/// An amount in billionths of its unit: the finest that upstream keeps, and wide enough for 2^63-1 whole units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Quantity {
    nanos: i128,
}

/// Why a text is not a quantity, as a clause that follows "is not a quantity: ".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("it is empty")]
    Empty,
    #[error("a number comes first")]
    NoNumber,
    #[error("`{0}` is no suffix; use m, k, M, G, T, P, E or Ki, Mi, Gi, Ti, Pi, Ei")]
    Suffix(String),
    #[error("it is too large")]
    TooLarge,
    #[error("a number or a text like \"500m\" or \"1Gi\" is expected")]
    Type,
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0 };

    pub fn parse(text: &str) -> Result<Quantity, Malformed> {
        let (negative, unsigned) = match text.as_bytes().first() {
            None => return Err(Malformed::Empty),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let end = unsigned.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(Malformed::NoNumber);
        }
        let scale = Scale::parse(suffix)?;
        let nanos = scale.nanos(whole.trim_start_matches('0'), fraction.trim_end_matches('0'))?;
        Ok(Quantity { nanos: if negative { -nanos } else { nanos } })
    }

    /// A JSON number or text, as quantities appear in objects.
    pub fn from_value(value: &Value) -> Result<Quantity, Malformed> {
        match value {
            Value::String(text) => Quantity::parse(text),
            // serde_json prints floats in the shortest form that reads back the same, so 0.1 stays 0.1.
            Value::Number(number) => Quantity::parse(&number.to_string()),
            _ => Err(Malformed::Type),
        }
    }

    pub fn from_millis(millis: i64) -> Quantity {
        Quantity { nanos: i128::from(millis) * (NANO / 1000) }
    }

    /// Thousandths, rounded up: cores become millicores. Saturates at the ends of i64.
    pub fn millis(self) -> i64 {
        saturate(ceiling(self.nanos, NANO / 1000))
    }

    /// Whole units, rounded up: bytes, pods. Saturates at the ends of i64.
    pub fn units(self) -> i64 {
        saturate(ceiling(self.nanos, NANO))
    }
}

/// Millicores of "500m", "2" or "0.1".
pub fn cpu_millis(text: &str) -> Result<i64, Malformed> {
    Quantity::parse(text).map(Quantity::millis)
}

/// Bytes of "128Mi", "1G" or "1024".
pub fn bytes(text: &str) -> Result<i64, Malformed> {
    Quantity::parse(text).map(Quantity::units)
}

/// Millicores as a person writes them: "2" or "1500m".
pub fn format_cpu(millis: i64) -> String {
    if millis % 1000 == 0 { (millis / 1000).to_string() } else { format!("{millis}m") }
}

/// Bytes with the largest binary suffix that keeps them exact: "1Gi", "1536Mi", "1000".
pub fn format_bytes(bytes: i64) -> String {
    for (suffix, shift) in [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)] {
        if bytes != 0 && bytes % (1_i64 << shift) == 0 {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

enum Scale {
    Binary(u32),
    Decimal(i32),
}

impl Scale {
    fn parse(suffix: &str) -> Result<Scale, Malformed> {
        Ok(match suffix {
            "" => Scale::Decimal(0),
            "n" => Scale::Decimal(-9),
            "u" => Scale::Decimal(-6),
            "m" => Scale::Decimal(-3),
            "k" => Scale::Decimal(3),
            "M" => Scale::Decimal(6),
            "G" => Scale::Decimal(9),
            "T" => Scale::Decimal(12),
            "P" => Scale::Decimal(15),
            "E" => Scale::Decimal(18),
            "Ki" => Scale::Binary(10),
            "Mi" => Scale::Binary(20),
            "Gi" => Scale::Binary(30),
            "Ti" => Scale::Binary(40),
            "Pi" => Scale::Binary(50),
            "Ei" => Scale::Binary(60),
            _ => {
                let exponent = suffix.strip_prefix(['e', 'E']).and_then(|digits| digits.parse::<i32>().ok());
                // 27 digits hold every nano of 2^63 units: beyond it all is zero or too large anyway.
                Scale::Decimal(exponent.ok_or_else(|| Malformed::Suffix(suffix.to_string()))?.clamp(-64, 64))
            }
        })
    }

    /// `whole.fraction` at this scale, in nanos, rounded up; digits only, no leading or trailing zeroes.
    fn nanos(&self, whole: &str, fraction: &str) -> Result<i128, Malformed> {
        let most = i128::from(i64::MAX) * NANO;
        // 60 digits are more than any representable amount needs; a fraction's tail can only round the last nano up.
        let kept = &fraction[..fraction.len().min(18)];
        let tail = fraction.len() > kept.len();
        let digits: i128 = format!("{whole}{kept}0").parse::<i128>().map_err(|_| Malformed::TooLarge)? / 10;
        let (multiplier, exponent) = match self {
            Scale::Binary(shift) => (1_i128 << shift, 9 - kept.len() as i32),
            Scale::Decimal(power) => (1, power + 9 - kept.len() as i32),
        };
        let scaled = digits.checked_mul(multiplier).ok_or(Malformed::TooLarge)?;
        let nanos = if digits == 0 {
            0
        } else if exponent >= 0 {
            10_i128.checked_pow(exponent as u32).and_then(|power| scaled.checked_mul(power)).ok_or(Malformed::TooLarge)?
        } else {
            10_i128.checked_pow(exponent.unsigned_abs()).map_or(1, |power| ceiling(scaled, power))
        };
        let nanos = if tail && nanos == 0 { 1 } else { nanos };
        if nanos > most { Err(Malformed::TooLarge) } else { Ok(nanos) }
    }
}

/// Division that rounds away from zero, as upstream does for what is asked for.
fn ceiling(amount: i128, divisor: i128) -> i128 {
    let quotient = amount / divisor;
    if amount % divisor == 0 { quotient } else { quotient + amount.signum() }
}

fn saturate(amount: i128) -> i64 {
    i64::try_from(amount).unwrap_or(if amount < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, millis: i64, units: i64) {
        let quantity = Quantity::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!((quantity.millis(), quantity.units()), (millis, units), "{text}");
    }

    #[test]
    fn every_suffix_of_kubernetes_is_read_exactly() {
        check("0", 0, 0);
        check("1", 1000, 1);
        check("500m", 500, 1);
        check("0.1", 100, 1);
        check(".5", 500, 1);
        check("5.", 5000, 5);
        check("1.5Gi", 1_610_612_736_000, 1_610_612_736);
        check("0.1Gi", 107_374_182_400, 107_374_183);
        check("1Ki", 1_024_000, 1024);
        check("1k", 1_000_000, 1000);
        check("1M", 1_000_000_000, 1_000_000);
        check("100n", 1, 1);
        check("1u", 1, 1);
        check("2e3", 2_000_000, 2000);
        check("2E3", 2_000_000, 2000);
        check("1E", i64::MAX, 1_000_000_000_000_000_000);
        check("7Ei", i64::MAX, 7 << 60);
        check("15e-1", 1500, 2);
        check("-1.5", -1500, -2);
        check("+3", 3000, 3);
        check("0.0000000000000000000000001", 1, 1);
        check("1e-60", 1, 1);
        check("0e60", 0, 0);
        check("9223372036854775807", i64::MAX, i64::MAX);
    }

    #[test]
    fn what_is_no_quantity_says_why() {
        for (text, why) in [
            ("", Malformed::Empty),
            ("-", Malformed::NoNumber),
            ("Gi", Malformed::NoNumber),
            (".", Malformed::NoNumber),
            ("1.2.3", Malformed::NoNumber),
            ("1gb", Malformed::Suffix("gb".into())),
            ("1 Gi", Malformed::Suffix(" Gi".into())),
            ("1e", Malformed::Suffix("e".into())),
            ("1K", Malformed::Suffix("K".into())),
            ("9Ei", Malformed::TooLarge),
            ("1e40", Malformed::TooLarge),
            ("99999999999999999999999999999999999999999999999", Malformed::TooLarge),
        ] {
            assert_eq!(Quantity::parse(text), Err(why), "{text}");
        }
        assert_eq!(Quantity::from_value(&Value::Bool(true)), Err(Malformed::Type));
        assert_eq!(Quantity::from_value(&serde_json::json!(0.1)).map(Quantity::millis), Ok(100));
    }

    #[test]
    fn amounts_print_as_people_write_them() {
        assert_eq!([format_cpu(1500), format_cpu(2000), format_cpu(0)], ["1500m", "2", "0"]);
        assert_eq!([format_bytes(1 << 30), format_bytes(1536 << 20), format_bytes(1000), format_bytes(0)], ["1Gi", "1536Mi", "1000", "0"]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_panic(text in ".{0,80}") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn any_number_with_any_tail_is_read_or_refused_without_panic(text in "[-+]?[0-9]{0,50}[.]?[0-9]{0,50}([eE][-+]?[0-9]{0,12}|[numkMGTPE]|[KMGTPE]i)?") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn printed_amounts_read_back_the_same(amount in 0_i64..i64::MAX / 1000) {
            prop_assert_eq!(bytes(&format_bytes(amount)), Ok(amount));
            prop_assert_eq!(cpu_millis(&format_cpu(amount)), Ok(amount));
        }
    }
}

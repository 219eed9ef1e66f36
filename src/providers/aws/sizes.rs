//! Which instance type a neutral size becomes. Pure: a table, cheapest first.

use crate::error::{Error, Result};

const GI: u64 = 1 << 30;

/// Cores and GiB of the burstable types, then of the fixed ones by size.
const SMALL: [(&str, u64, u64); 4] = [("t3.micro", 2, 1), ("t3.small", 2, 2), ("t3.medium", 2, 4), ("t3.large", 2, 8)];
const SIZES: [(&str, u64); 7] =
    [("large", 2), ("xlarge", 4), ("2xlarge", 8), ("4xlarge", 16), ("8xlarge", 32), ("12xlarge", 48), ("24xlarge", 96)];
/// GiB per core.
const FAMILIES: [(&str, u64); 3] = [("c6i", 2), ("m6i", 4), ("r6i", 8)];

pub fn instance_type(cpu_millis: u64, memory_bytes: u64) -> Result<String> {
    let small = SMALL.iter().map(|(name, cores, memory)| (name.to_string(), *cores, *memory));
    let fixed = SIZES
        .iter()
        .flat_map(|(size, cores)| FAMILIES.iter().map(move |(family, per_core)| (format!("{family}.{size}"), *cores, cores * per_core)));
    let fits = |(_, cores, memory): &(String, u64, u64)| cores * 1000 >= cpu_millis && memory * GI >= memory_bytes;
    small.chain(fixed).find(fits).map(|(name, ..)| name).ok_or_else(|| {
        let (cores, memory) = (cpu_millis.div_ceil(1000), memory_bytes.div_ceil(GI));
        Error::input(format!("could not find an instance type with {cores} cores and {memory} GiB"))
            .hint("name one in spec.providers.aws.instanceTypes")
    })
}

/// US dollars an hour: list prices of us-east-1 as of 2026, for orientation; other regions are up to a third dearer.
const SMALL_PRICES: [(&str, f64); 4] = [("t3.micro", 0.0104), ("t3.small", 0.0208), ("t3.medium", 0.0416), ("t3.large", 0.0832)];
/// Per core.
const FAMILY_PRICES: [(&str, f64); 3] = [("c6i", 0.0425), ("m6i", 0.048), ("r6i", 0.063)];
const PUBLIC_ADDRESS: f64 = 0.005;
const DISK_GIB: f64 = 0.08 / 730.0;
pub const BALANCER_PRICE: f64 = 0.0225;

/// Of a machine with its disk and public address; `None` for a type that is not in the table.
pub fn machine_price(instance_type: &str, disk_bytes: u64) -> Option<f64> {
    let small = SMALL_PRICES.iter().find(|(name, _)| *name == instance_type).map(|(_, price)| *price);
    let fixed = || {
        let (family, size) = instance_type.split_once('.')?;
        let (_, per_core) = FAMILY_PRICES.iter().find(|(name, _)| *name == family)?;
        let (_, cores) = SIZES.iter().find(|(name, _)| *name == size)?;
        Some(per_core * *cores as f64)
    };
    Some(small.or_else(fixed)? + PUBLIC_ADDRESS + DISK_GIB * f64::from(disk_gib(disk_bytes)))
}

/// AWS marks its own Arm processors by a `g` after the family's number: m7g, c7gn, t4g.
pub fn architecture(instance_type: &str) -> &'static str {
    let family = instance_type.split('.').next().unwrap_or_default();
    let after =
        family.trim_start_matches(|letter: char| letter.is_ascii_alphabetic()).trim_start_matches(|letter: char| letter.is_ascii_digit());
    if after.starts_with('g') && !family.starts_with("g4") { "arm64" } else { "x86_64" }
}

/// Whole GiB, and at least what the images need.
pub fn disk_gib(bytes: u64) -> i32 {
    const SMALLEST: u64 = 8;
    i32::try_from(bytes.div_ceil(GI).max(SMALLEST)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_type_that_fits_is_taken() {
        let check = |cpu, memory, expected: &str| assert_eq!(instance_type(cpu, memory).expect("a type"), expected);
        check(500, GI / 2, "t3.micro");
        check(1000, 2 * GI, "t3.small");
        check(2000, 16 * GI, "r6i.large");
        check(4000, 8 * GI, "c6i.xlarge");
        assert!(instance_type(500_000, GI).is_err());
    }

    #[test]
    fn every_type_of_the_table_has_a_price_and_bigger_ones_cost_more() {
        let price = |cpu, memory| machine_price(&instance_type(cpu, memory).expect("a type"), 8 * GI).expect("a price");
        assert!(price(500, GI) < price(2000, 8 * GI) && price(2000, 8 * GI) < price(4000, 8 * GI));
        assert!(price(96_000, 768 * GI) > 6.0 && machine_price("x9.tiny", GI).is_none());
    }

    #[test]
    fn arm_is_told_by_the_name() {
        for (name, expected) in
            [("m7g.large", "arm64"), ("c7gn.large", "arm64"), ("t4g.small", "arm64"), ("m7i.large", "x86_64"), ("g5.xlarge", "x86_64")]
        {
            assert_eq!(architecture(name), expected, "{name}");
        }
    }

    #[test]
    fn disks_are_whole_gibibytes() {
        assert_eq!((disk_gib(1), disk_gib(10 * GI + 1)), (8, 11));
    }
}

//! Which instance type a neutral size becomes. Pure: a table, cheapest first.

use crate::error::{Error, Result};
use serde_json::Value;

const GI: u64 = 1 << 30;

/// What this kprov runs on, and so its machines, in AWS's words: it uploads itself.
pub const OURS: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" };

/// Types of one kind of processor. Prices are US dollars an hour: list prices of us-east-1 as of 2026, for orientation; other regions are
/// up to a third dearer.
struct Offer {
    architecture: &'static str,
    burstable: &'static str,
    /// Of its smallest size; each next one is twice that.
    burstable_price: f64,
    /// Family, GiB and price per core.
    fixed: [(&'static str, u64, f64); 3],
    /// Those of all three families.
    sizes: &'static [(&'static str, u64)],
}

const OFFERS: [Offer; 2] = [
    Offer {
        architecture: "x86_64",
        burstable: "t3",
        burstable_price: 0.0104,
        fixed: [("c6i", 2, 0.0425), ("m6i", 4, 0.048), ("r6i", 8, 0.063)],
        sizes: &[("large", 2), ("xlarge", 4), ("2xlarge", 8), ("4xlarge", 16), ("8xlarge", 32), ("12xlarge", 48), ("24xlarge", 96)],
    },
    Offer {
        architecture: "arm64",
        burstable: "t4g",
        burstable_price: 0.0084,
        fixed: [("c7g", 2, 0.0363), ("m7g", 4, 0.0408), ("r7g", 8, 0.0536)],
        sizes: &[("large", 2), ("xlarge", 4), ("2xlarge", 8), ("4xlarge", 16), ("8xlarge", 32), ("12xlarge", 48), ("16xlarge", 64)],
    },
];
/// Sizes and GiB of the burstable types, all of two cores.
const SMALL: [(&str, u64); 4] = [("micro", 1), ("small", 2), ("medium", 4), ("large", 8)];

/// Name, cores, GiB and price of every type, cheapest first within what is equally apt.
fn types(architecture: &str) -> Vec<(String, u64, u64, f64)> {
    let Some(offer) = OFFERS.iter().find(|offer| offer.architecture == architecture) else { return Vec::new() };
    let small = SMALL.iter().zip(0..).map(|((size, memory), step)| {
        let price = offer.burstable_price * f64::from(1 << step);
        (format!("{}.{size}", offer.burstable), 2, *memory, price)
    });
    let fixed = offer.sizes.iter().flat_map(|(size, cores)| {
        offer
            .fixed
            .iter()
            .map(move |(family, per_core, price)| (format!("{family}.{size}"), *cores, cores * per_core, price * *cores as f64))
    });
    small.chain(fixed).collect()
}

pub fn instance_type(architecture: &str, cpu_millis: u64, memory_bytes: u64) -> Result<String> {
    let fits = |(_, cores, memory, _): &(String, u64, u64, f64)| cores * 1000 >= cpu_millis && memory * GI >= memory_bytes;
    types(architecture).into_iter().find(fits).map(|(name, ..)| name).ok_or_else(|| {
        let (cores, memory) = (cpu_millis.div_ceil(1000), memory_bytes.div_ceil(GI));
        Error::input(format!("could not find an instance type with {cores} cores and {memory} GiB"))
            .hint("name one in spec.providers.aws.instanceTypes")
    })
}

const PUBLIC_ADDRESS: f64 = 0.005;
const DISK_GIB: f64 = 0.08 / 730.0;
pub const BALANCER_PRICE: f64 = 0.0225;

/// Of a machine with its disk and public address; `None` for a type that is not in the table.
pub fn machine_price(instance_type: &str, disk_gib: i32) -> Option<f64> {
    let (.., price) = types(architecture(instance_type)).into_iter().find(|(name, ..)| name == instance_type)?;
    Some(price + PUBLIC_ADDRESS + DISK_GIB * f64::from(disk_gib))
}

/// AWS marks its own Arm processors by a `g` after the family's number: m7g, c7gn, t4g; the first of them were a1.
pub fn architecture(instance_type: &str) -> &'static str {
    let family = instance_type.split('.').next().unwrap_or_default();
    let after =
        family.trim_start_matches(|letter: char| letter.is_ascii_alphabetic()).trim_start_matches(|letter: char| letter.is_ascii_digit());
    if after.starts_with('g') || family == "a1" { "arm64" } else { "x86_64" }
}

/// Whole GiB, and at least what the images need.
pub fn disk_gib(bytes: u64) -> i32 {
    const SMALLEST: u64 = 8;
    i32::try_from(bytes.div_ceil(GI).max(SMALLEST)).unwrap_or(i32::MAX)
}

/// The disk that a machine is made with: what its image holds may be larger than what was wished for, which alone is compared.
pub fn disk_of(machine: &Value) -> i32 {
    let made = machine["diskGib"].as_i64().and_then(|size| i32::try_from(size).ok());
    made.unwrap_or_else(|| disk_gib(machine["diskBytes"].as_u64().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_type_that_fits_is_taken() {
        let check = |cpu, memory, expected: &str| assert_eq!(instance_type("x86_64", cpu, memory).expect("a type"), expected);
        check(500, GI / 2, "t3.micro");
        check(1000, 2 * GI, "t3.small");
        check(2000, 16 * GI, "r6i.large");
        check(4000, 8 * GI, "c6i.xlarge");
        assert!(instance_type("x86_64", 500_000, GI).is_err());
        assert_eq!(instance_type("arm64", 4000, 8 * GI).expect("a type"), "c7g.xlarge");
    }

    #[test]
    fn every_type_of_the_table_has_a_price_and_bigger_ones_cost_more() {
        for kind in ["x86_64", "arm64"] {
            assert!(types(kind).iter().all(|(name, ..)| architecture(name) == kind), "{kind}");
            let price = |cpu, memory| machine_price(&instance_type(kind, cpu, memory).expect("a type"), 8).expect("a price");
            assert!(price(500, GI) < price(2000, 8 * GI) && price(2000, 8 * GI) < price(4000, 8 * GI));
            assert!(price(64_000, 512 * GI) > 3.0 && machine_price("x9.tiny", 8).is_none());
        }
    }

    #[test]
    fn arm_is_told_by_the_name() {
        for (name, expected) in [
            ("m7g.large", "arm64"),
            ("c7gn.large", "arm64"),
            ("t4g.small", "arm64"),
            ("m7i.large", "x86_64"),
            ("g5.xlarge", "x86_64"),
            ("g4dn.xlarge", "x86_64"),
            ("g5g.xlarge", "arm64"),
            ("a1.large", "arm64"),
        ] {
            assert_eq!(architecture(name), expected, "{name}");
        }
    }

    #[test]
    fn disks_are_whole_gibibytes() {
        assert_eq!((disk_gib(1), disk_gib(10 * GI + 1)), (8, 11));
        let machine = serde_json::json!({"diskBytes": 10 * GI});
        assert_eq!(disk_of(&machine), 10);
        assert_eq!(disk_of(&serde_json::json!({"diskBytes": 10 * GI, "diskGib": 30})), 30);
    }
}

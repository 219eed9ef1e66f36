//! Which machine type a neutral size becomes. Pure: a table, smallest and cheapest first.

use crate::error::{Error, Result};

const GI: u64 = 1 << 30;
const MI: u64 = 1 << 20;

/// Name, thousandths of a core, bytes. E2 up to its largest, then N2: general purpose types that every region has. The two small shared
/// ones count with the cores that they may use for long.
fn table() -> Vec<(String, u64, u64)> {
    let mut all: Vec<(String, u64, u64)> =
        vec![("e2-micro".into(), 250, GI), ("e2-small".into(), 500, 2 * GI), ("e2-medium".into(), 1000, 4 * GI)];
    // Memory per core in MiB: highcpu 1 GiB, standard 4, highmem 8.
    let mut family = |name: &str, cores: &[u64]| {
        for count in cores {
            for (kind, per_core) in [("highcpu", 1024), ("standard", 4096), ("highmem", 8192)] {
                let exists = !(kind == "highcpu" && *count > 32 && name == "e2" || kind == "highmem" && *count > 16 && name == "e2");
                if exists {
                    all.push((format!("{name}-{kind}-{count}"), count * 1000, count * per_core * MI));
                }
            }
        }
    };
    family("e2", &[2, 4, 8, 16, 32]);
    family("n2", &[48, 64, 80]);
    all
}

/// The first type with at least so much of both.
pub fn machine_type(cpu_millis: u64, memory_bytes: u64) -> Result<String> {
    let mut all = table();
    all.sort_by_key(|(_, cpu, memory)| (*cpu, *memory));
    let fits = all.into_iter().filter(|(_, cpu, memory)| *cpu >= cpu_millis && *memory >= memory_bytes);
    // Cores cost about as much as eight times as many GiB: the cheapest that fits need not be the one with fewest cores.
    let cheapest = fits.min_by_key(|(_, cpu, memory)| cpu / 1000 * 8 + memory / GI);
    cheapest.map(|(name, ..)| name).ok_or_else(|| {
        Error::input(format!(
            "could not find a machine type with {} cores and {} GiB",
            cpu_millis.div_ceil(1000),
            memory_bytes.div_ceil(GI)
        ))
        .hint("name one in spec.providers.gcp.machineTypes")
    })
}

/// One's own numbers in its name: `e2-custom-4-8192`, `custom-2-4096`.
pub fn is_custom(machine_type: &str) -> bool {
    machine_type.contains("custom-")
}

/// `n2d` of `n2d-standard-4`; the oldest custom types are N1 and do not say so.
pub fn series(machine_type: &str) -> &str {
    if machine_type.starts_with("custom-") { "n1" } else { machine_type.split('-').next().unwrap_or_default() }
}

/// From the fourth generation on, series take Hyperdisks alone; H3 and Z3 take both and have these by default.
pub fn disk_type(machine_type: &str) -> &'static str {
    let series = series(machine_type);
    let generation: u32 = series.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
    if generation >= 4 || ["h3", "z3"].contains(&series) { HYPERDISK } else { "pd-balanced" }
}

pub const HYPERDISK: &str = "hyperdisk-balanced";

/// What the quota of a series' cores is called.
pub fn core_quota(machine_type: &str) -> String {
    match series(machine_type) {
        "e2" | "n1" | "f1" | "g1" => "CPUS".into(),
        other => format!("{}_CPUS", other.to_ascii_uppercase()),
    }
}

/// US dollars an hour as Google's price list has them for its cheapest regions; others cost up to half as much again.
pub const BALANCER_PRICE: f64 = 0.025;
const ADDRESS_PRICE: f64 = 0.005;
const DISK_GIB_PRICE: f64 = 0.10 / HOURS_A_MONTH;
const SHARE_GIB_PRICE: f64 = 0.16 / HOURS_A_MONTH;
const HOURS_A_MONTH: f64 = 730.0;

/// A machine with its disk and its address; `None` for types that are not in the table.
pub fn machine_price(machine_type: &str, disk_bytes: u64) -> Option<f64> {
    let (_, cpu_millis, memory) = table().into_iter().find(|(name, ..)| name == machine_type)?;
    let (core, gib) = if machine_type.starts_with("n2-") { (0.0316, 0.0042) } else { (0.0218, 0.0029) };
    let machine = cpu_millis as f64 / 1000.0 * core + memory as f64 / GI as f64 * gib;
    Some(machine + (disk_bytes / GI) as f64 * DISK_GIB_PRICE + ADDRESS_PRICE)
}

pub fn share_price(bytes: u64) -> f64 {
    (bytes / GI) as f64 * SHARE_GIB_PRICE
}

/// Whole GiB, and at least what the images need.
pub fn disk_gib(bytes: u64) -> u64 {
    const SMALLEST: u64 = 10;
    bytes.div_ceil(GI).max(SMALLEST)
}

/// Filestore's smallest basic instance is 1 TiB; it grows by whole GiB.
pub fn share_gib(bytes: u64) -> u64 {
    const SMALLEST: u64 = 1024;
    bytes.div_ceil(GI).max(SMALLEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_there_has_a_price_where_it_is_known() {
        let cents = |price: f64| (price * 100.0).round();
        assert_eq!(machine_price("e2-medium", 10 * GI).map(cents), Some(4.0));
        assert_eq!(machine_price("n2-standard-48", 0).map(cents), Some(233.0));
        assert_eq!(machine_price("x9-metal", 0), None);
        assert_eq!(cents(share_price(1024 * GI)), 22.0);
    }

    fn check(cpu_millis: u64, memory_gib: u64, expected: &str) {
        assert_eq!(machine_type(cpu_millis, memory_gib * GI).expect("a type"), expected, "{cpu_millis}m {memory_gib}Gi");
    }

    #[test]
    fn the_cheapest_type_that_has_enough_of_both_is_chosen() {
        check(250, 1, "e2-micro");
        check(500, 2, "e2-small");
        check(1000, 1, "e2-medium");
        check(1000, 4, "e2-medium");
        check(2000, 2, "e2-highcpu-2");
        check(2000, 8, "e2-standard-2");
        check(1000, 16, "e2-highmem-2");
        check(4000, 16, "e2-standard-4");
        check(33_000, 16, "n2-highcpu-48");
    }

    #[test]
    fn a_series_says_which_disks_it_takes_and_whose_cores_it_uses() {
        let check = |name: &str, disk: &str, quota: &str| assert_eq!((disk_type(name), core_quota(name).as_str()), (disk, quota), "{name}");
        for name in ["e2-medium", "e2-custom-4-8192", "custom-2-4096", "n1-standard-1"] {
            check(name, "pd-balanced", "CPUS");
        }
        check("n2d-standard-4", "pd-balanced", "N2D_CPUS");
        check("c3-standard-4", "pd-balanced", "C3_CPUS");
        check("c3d-standard-4", "pd-balanced", "C3D_CPUS");
        check("m3-ultramem-32", "pd-balanced", "M3_CPUS");
        check("z3-highmem-88", "hyperdisk-balanced", "Z3_CPUS");
        for (name, quota) in [("n4-custom-4-8192", "N4_CPUS"), ("n4a-standard-1", "N4A_CPUS"), ("c4-standard-2", "C4_CPUS")] {
            check(name, "hyperdisk-balanced", quota);
        }
        for name in ["c4a-standard-1", "c4d-standard-2", "m4-ultramem-224", "x4-megamem-960-metal", "a4-highgpu-8g"] {
            assert_eq!(disk_type(name), HYPERDISK, "{name}");
        }
        assert!(is_custom("e2-custom-4-8192") && is_custom("custom-2-4096") && !is_custom("e2-standard-4"));
    }

    #[test]
    fn a_size_that_no_type_has_is_an_error_with_a_way_out() {
        let error = machine_type(1_000_000, GI).expect_err("nobody has that");
        assert!(error.hints()[0].contains("machineTypes"));
    }

    #[test]
    fn disks_and_shares_are_at_least_what_google_sells() {
        assert_eq!((disk_gib(1), disk_gib(20 * GI + 1)), (10, 21));
        assert_eq!((share_gib(5 * GI), share_gib(2048 * GI)), (1024, 2048));
    }
}

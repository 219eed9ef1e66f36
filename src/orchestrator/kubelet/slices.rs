//! Cgroups of pods where systemd owns the tree: slices, by `systemctl`. What is written past systemd it takes back when it next looks.

use super::resources::{Amounts, PERIOD_MICROS, quota};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::paths::UNIT_PROPERTIES;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

pub const SUFFIX: &str = ".slice";
/// A stop that waits for its processes takes as long as they do.
const TIMEOUT: Duration = Duration::from_secs(120);

/// From now on the slice has these limits; it need not run yet: the runtime's first scope in it starts it.
pub async fn limit(slice: &str, amounts: Amounts) -> Result<()> {
    let properties = properties(amounts);
    let mut arguments = vec!["set-property", "--runtime", "--", slice];
    arguments.extend(properties.iter().map(String::as_str));
    systemctl(&arguments).await
}

/// Ends the slice with everything in it, and what was set for it.
pub async fn remove(slice: &str) -> Result<()> {
    systemctl(&["stop", "--quiet", "--", slice]).await?;
    match std::fs::remove_dir_all(Path::new(UNIT_PROPERTIES).join(format!("{slice}.d"))) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).or_fail(Kind::Host, || format!("could not remove what was set for {slice}"))
        }
        _ => Ok(()),
    }
}

/// An empty value is systemd's word for "no limit". On cgroup v1 it translates these to the older files by itself.
fn properties(amounts: Amounts) -> Vec<String> {
    // In percent of one core, of which systemd writes down whole ones; a container's own limit is exact.
    let percent = |millis| (quota(millis) * 100 + PERIOD_MICROS - 1) / PERIOD_MICROS;
    let cpu = amounts.cpu_limit_millis.map_or(String::new(), |millis| format!("{}%", percent(millis)));
    let memory = amounts.memory_limit_bytes.map_or("infinity".into(), |bytes| bytes.to_string());
    vec![
        format!("CPUWeight={}", super::cgroups::weight(amounts.cpu_request_millis.unwrap_or(0))),
        format!("CPUQuota={cpu}"),
        format!("MemoryMax={memory}"),
    ]
}

/// The uid of the pod whose slice this is.
pub fn pod(slice: &str) -> Option<String> {
    let uid = slice.strip_suffix(SUFFIX)?.rsplit('-').next()?.strip_prefix("pod")?;
    Some(uid.replace('_', "-"))
}

async fn systemctl(arguments: &[&str]) -> Result<()> {
    let failed = || format!("could not run systemctl {}", arguments.join(" "));
    let mut command = tokio::process::Command::new("systemctl");
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(TIMEOUT, command.output()).await;
    let output = output.map_err(|_| Error::timeout(format!("{}: no answer", failed())))?.or_fail(Kind::Host, failed)?;
    if output.status.success() {
        return Ok(());
    }
    let words: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(1000).collect();
    Err(Error::host(failed()).because(words).hint("look at systemctl status of this slice on the machine"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_become_properties() {
        let check = |request, cpu, memory, expected: [&str; 3]| {
            let amounts = Amounts { cpu_request_millis: request, cpu_limit_millis: cpu, memory_limit_bytes: memory, ..Amounts::default() };
            assert_eq!(properties(amounts), expected);
        };
        check(None, None, None, ["CPUWeight=1", "CPUQuota=", "MemoryMax=infinity"]);
        check(Some(1000), Some(1000), Some(32 << 20), ["CPUWeight=39", "CPUQuota=100%", "MemoryMax=33554432"]);
        check(Some(100), Some(205), None, ["CPUWeight=4", "CPUQuota=21%", "MemoryMax=infinity"]);
        // The kernel's smallest quota.
        check(Some(1), Some(1), None, ["CPUWeight=1", "CPUQuota=1%", "MemoryMax=infinity"]);
    }

    #[test]
    fn a_slices_name_says_whose_it_is() {
        let check = |slice, expected: Option<&str>| assert_eq!(pod(slice).as_deref(), expected, "{slice}");
        check("kpods-burstable-poda_b.slice", Some("a-b"));
        check("kpods-poda_b.slice", Some("a-b"));
        check("kpods-burstable.slice", None);
        check("kpods.slice", None);
        check("cri-containerd-ab.scope", None);
    }
}

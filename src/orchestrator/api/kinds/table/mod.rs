//! Table answers: the columns `kubectl get` prints, with upstream's words (`k8s.io/kubernetes/pkg/printers/internalversion`).

mod pod;
mod rows;

use super::KindRow;
use super::json::text;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// The `includeObject` query parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

/// A name, a type, and whether only `-o wide` shows it.
struct Column(&'static str, &'static str, bool);

const fn text_column(name: &'static str) -> Column {
    Column(name, "string", false)
}
const fn number(name: &'static str) -> Column {
    Column(name, "integer", false)
}
const fn wide(name: &'static str) -> Column {
    Column(name, "string", true)
}

const NAME: Column = text_column("Name");
const AGE: Column = text_column("Age");

/// One kind's columns, and the cells of one object in their order.
struct Printer {
    group: &'static str,
    kind: &'static str,
    columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
}

const DEFAULT: Printer = Printer { group: "", kind: "", columns: &[NAME, AGE], cells: rows::name_and_age };

const PRINTERS: &[Printer] = &[
    Printer {
        group: "",
        kind: "Pod",
        columns: &[
            NAME,
            text_column("Ready"),
            text_column("Status"),
            text_column("Restarts"),
            AGE,
            wide("IP"),
            wide("Node"),
            wide("Nominated Node"),
            wide("Readiness Gates"),
        ],
        cells: pod::cells,
    },
    Printer {
        group: "",
        kind: "Service",
        columns: &[
            NAME,
            text_column("Type"),
            text_column("Cluster-IP"),
            text_column("External-IP"),
            text_column("Port(s)"),
            AGE,
            wide("Selector"),
        ],
        cells: rows::service,
    },
    Printer {
        group: "",
        kind: "Node",
        columns: &[
            NAME,
            text_column("Status"),
            text_column("Roles"),
            AGE,
            text_column("Version"),
            wide("Internal-IP"),
            wide("External-IP"),
            wide("OS-Image"),
            wide("Kernel-Version"),
            wide("Container-Runtime"),
        ],
        cells: rows::node,
    },
    Printer { group: "", kind: "Namespace", columns: &[NAME, text_column("Status"), AGE], cells: rows::namespace },
    Printer { group: "", kind: "ConfigMap", columns: &[NAME, number("Data"), AGE], cells: rows::config_map },
    Printer { group: "", kind: "Secret", columns: &[NAME, text_column("Type"), number("Data"), AGE], cells: rows::secret },
    Printer { group: "", kind: "ServiceAccount", columns: &[NAME, number("Secrets"), AGE], cells: rows::service_account },
    Printer {
        group: "",
        kind: "Event",
        columns: &[
            text_column("Last Seen"),
            text_column("Type"),
            text_column("Reason"),
            text_column("Object"),
            wide("Subobject"),
            wide("Source"),
            text_column("Message"),
            wide("First Seen"),
            Column("Count", "integer", true),
            wide("Name"),
        ],
        cells: rows::event,
    },
    Printer {
        group: "",
        kind: "PersistentVolume",
        columns: &[
            NAME,
            text_column("Capacity"),
            text_column("Access Modes"),
            text_column("Reclaim Policy"),
            text_column("Status"),
            text_column("Claim"),
            text_column("StorageClass"),
            text_column("VolumeAttributesClass"),
            text_column("Reason"),
            AGE,
            wide("VolumeMode"),
        ],
        cells: rows::persistent_volume,
    },
    Printer {
        group: "",
        kind: "PersistentVolumeClaim",
        columns: &[
            NAME,
            text_column("Status"),
            text_column("Volume"),
            text_column("Capacity"),
            text_column("Access Modes"),
            text_column("StorageClass"),
            text_column("VolumeAttributesClass"),
            AGE,
            wide("VolumeMode"),
        ],
        cells: rows::claim,
    },
    Printer {
        group: "apps",
        kind: "Deployment",
        columns: &[
            NAME,
            text_column("Ready"),
            number("Up-to-date"),
            number("Available"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        cells: rows::deployment,
    },
    Printer {
        group: "apps",
        kind: "ReplicaSet",
        columns: &[NAME, number("Desired"), number("Current"), number("Ready"), AGE, wide("Containers"), wide("Images"), wide("Selector")],
        cells: rows::replica_set,
    },
    Printer {
        group: "apps",
        kind: "DaemonSet",
        columns: &[
            NAME,
            number("Desired"),
            number("Current"),
            number("Ready"),
            number("Up-to-date"),
            number("Available"),
            text_column("Node Selector"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        cells: rows::daemon_set,
    },
    Printer {
        group: "apps",
        kind: "ControllerRevision",
        columns: &[NAME, text_column("Controller"), number("Revision"), AGE],
        cells: rows::controller_revision,
    },
    Printer { group: "coordination.k8s.io", kind: "Lease", columns: &[NAME, text_column("Holder"), AGE], cells: rows::lease },
    Printer {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        columns: &[NAME, text_column("AddressType"), text_column("Ports"), text_column("Endpoints"), AGE],
        cells: rows::endpoint_slice,
    },
    Printer {
        group: "storage.k8s.io",
        kind: "StorageClass",
        columns: &[
            NAME,
            text_column("Provisioner"),
            text_column("ReclaimPolicy"),
            text_column("VolumeBindingMode"),
            Column("AllowVolumeExpansion", "boolean", false),
            AGE,
        ],
        cells: rows::storage_class,
    },
    Printer {
        group: "kprov.dev",
        kind: "Blueprint",
        columns: &[NAME, text_column("Provider"), number("Machines"), text_column("Ready"), AGE],
        cells: rows::blueprint,
    },
];

/// A `meta.k8s.io/v1` Table of `objects`; `list_metadata` is the list's (for one object or a watch event: `{}` with its resource version).
pub fn table(row: &KindRow, objects: &[Value], now: Timestamp, include: IncludeObject, list_metadata: Value) -> Value {
    let printer = PRINTERS.iter().find(|printer| row.is(printer.group, printer.kind)).unwrap_or(&DEFAULT);
    let columns: Vec<_> = printer
        .columns
        .iter()
        .map(|Column(name, kind, wide)| {
            let format = if *name == "Name" { "name" } else { "" };
            json!({"name": name, "type": kind, "format": format, "description": "", "priority": u8::from(*wide)})
        })
        .collect();
    let rows: Vec<_> = objects.iter().map(|object| table_row(row, printer, object, now, include)).collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list_metadata, "columnDefinitions": columns, "rows": rows})
}

fn table_row(row: &KindRow, printer: &Printer, object: &Value, now: Timestamp, include: IncludeObject) -> Value {
    let mut entry = json!({"cells": (printer.cells)(object, now)});
    if row.is("", "Pod") {
        let reason = text(object, "/status/phase");
        let message = match reason {
            "Succeeded" => "The pod has completed successfully.",
            "Failed" => "The pod failed.",
            _ => "",
        };
        if !message.is_empty() {
            entry["conditions"] = json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]);
        }
    }
    match include {
        IncludeObject::None => {}
        IncludeObject::Object => entry["object"] = object.clone(),
        IncludeObject::Metadata => {
            entry["object"] = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]});
        }
    }
    entry
}

/// How long ago a time in the object was, as `kubectl` shows ages.
fn since(object: &Value, pointer: &str, now: Timestamp) -> String {
    match text(object, pointer).parse::<Timestamp>() {
        Ok(then) => human_duration(now.as_second() - then.as_second()),
        Err(_) => "<unknown>".into(),
    }
}

/// `k8s.io/apimachinery/pkg/util/duration.HumanDuration`: two units at most, fewer the longer it is.
pub fn human_duration(seconds: i64) -> String {
    let pair = |large: i64, large_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{large}{large_unit}"),
        small => format!("{large}{large_unit}{small}{small_unit}"),
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        // Clocks of two machines may differ a little.
        ..-1 => "<invalid>".into(),
        -1 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::api::kinds::Registry;

    pub(super) fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().expect("a time")
    }

    /// The cells of `object` joined by ` | `, as they would stand under `header`.
    pub(super) fn check(group: &str, kind: &str, header: &str, object: Value, line: &str) {
        let row = Registry::builtin().find_kind(group, "v1", kind).expect(kind);
        let table = table(row, std::slice::from_ref(&object), now(), IncludeObject::None, json!({}));
        let names: Vec<_> =
            table["columnDefinitions"].as_array().expect("a list").iter().map(|column| column["name"].as_str().expect("text")).collect();
        assert_eq!(names.join(" | "), header);
        let cells: Vec<_> = table["rows"][0]["cells"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|cell| cell.as_str().map_or_else(|| cell.to_string(), String::from))
            .collect();
        assert_eq!(cells.join(" | "), line);
    }

    #[test]
    fn ages_are_shown_as_kubectl_shows_them() {
        for (seconds, shown) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (10_860, "3h1m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (252_288_000, "8y"),
        ] {
            assert_eq!(human_duration(seconds), shown, "{seconds}");
        }
    }

    #[test]
    fn a_row_carries_what_was_asked_for() {
        let row = Registry::builtin().find("", "v1", "configmaps").expect("served");
        let object = json!({"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "y"}});
        let with = |include| table(row, std::slice::from_ref(&object), now(), include, json!({"resourceVersion": "7"}));
        assert_eq!(with(IncludeObject::None)["rows"][0].get("object"), None);
        assert_eq!(with(IncludeObject::Object)["rows"][0]["object"], object);
        let metadata = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "a"}});
        assert_eq!(with(IncludeObject::Metadata)["rows"][0]["object"], metadata);
        assert_eq!(with(IncludeObject::None)["metadata"], json!({"resourceVersion": "7"}));
    }

    #[test]
    fn every_row_has_as_many_cells_as_columns_even_for_nonsense() {
        for row in Registry::builtin().all() {
            for object in [
                json!({}),
                json!([]),
                json!({"metadata": 1, "spec": "x", "status": [], "data": 7}),
                json!({"spec": {"ports": [1], "containers": [[]]}}),
            ] {
                let table = table(row, &[object], now(), IncludeObject::Metadata, json!({}));
                let count = |value: &Value| value.as_array().map(Vec::len);
                assert_eq!(count(&table["rows"][0]["cells"]), count(&table["columnDefinitions"]), "{}", row.kind);
            }
        }
    }
}

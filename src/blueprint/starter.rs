//! The commented blueprint that `kprov init` writes.

/// A blueprint that validates and serves the demo application as it is; `name` is the cluster's.
pub fn text(name: &str) -> String {
    STARTER.replace("CLUSTER", name)
}

const STARTER: &str = r#"# One desired architecture. `kprov up FILE` makes it exist and keeps it true; `kprov down FILE` leaves nothing.
# All fields: `kprov schema`. Mistakes: `kprov validate FILE`.
apiVersion: kprov.dev/v1
kind: Blueprint
metadata:
  name: CLUSTER
spec:
  # Where the machines come from: local, aws, gcp or ssh. The one line to change.
  provider: local
  # A place that each provider maps to one of its own; it has a default.
  # location: eu-west

  # Who may reach SSH and the API from outside. Nothing is open by default.
  # access:
  #   from: [192.0.2.0/24]

  # Groups of equal machines, named control-1, worker-1, worker-2, ...
  # Sizes are Kubernetes quantities; these are the defaults.
  machines:
    - name: control
      role: control-plane
      count: 1
      size: {cpu: 1, memory: 1Gi, disk: 10Gi}
    - name: worker
      role: worker
      count: 2
      size: {cpu: 1, memory: 1Gi, disk: 10Gi}

  # Addresses that lead to services: namespace/service, its port 80 unless targetPort says otherwise.
  loadBalancers:
    - name: web
      listeners:
        - {port: 80, service: CLUSTER/web}

  # Shared storage: a StorageClass of this name; claims with ReadWriteMany bind to it.
  # filesystems:
  #   - {name: media, size: 5Gi}

  # OCI archives pushed to the machines, relative to this file.
  # images: [application.tar]

  # Kubernetes manifests: files or folders relative to this file, or objects as here.
  workloads:
    - apiVersion: v1
      kind: Namespace
      metadata: {name: CLUSTER}
    - apiVersion: apps/v1
      kind: Deployment
      metadata: {name: web, namespace: CLUSTER}
      spec:
        replicas: 3
        selector: {matchLabels: {app: web}}
        template:
          metadata: {labels: {app: web}}
          spec:
            containers:
              - name: web
                image: kprov.dev/kprov:latest  # the demo application, present on every machine
                imagePullPolicy: IfNotPresent
                args: [demo]
                ports: [{containerPort: 8080}]
                readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
    - apiVersion: v1
      kind: Service
      metadata: {name: web, namespace: CLUSTER}
      spec:
        selector: {app: web}
        ports: [{port: 80, targetPort: 8080}]
"#;

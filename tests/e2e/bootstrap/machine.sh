# Process 1 of a machine: fresh /etc, /root and /usr/local over the host's, its own /run and /var/lib/..., then sshd.
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
for dir in etc usr/local root; do
  mkdir -p "$FOLDER/$dir/upper" "$FOLDER/$dir/work"
  mount -t overlay overlay -o "lowerdir=/$dir,upperdir=$FOLDER/$dir/upper,workdir=$FOLDER/$dir/work" "/$dir"
done
rm -rf /etc/kprov /etc/containerd /etc/cni/net.d /usr/local/bin/kprov
for dir in kprov containerd; do
  mkdir -p "$FOLDER/var/$dir" "/var/lib/$dir"
  mount --bind "$FOLDER/var/$dir" "/var/lib/$dir"
done
exec /usr/sbin/sshd -D -e -f "$FOLDER/sshd_config" 2>&1

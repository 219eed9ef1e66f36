# What kprov asks a machine before it does anything: constant text, no data in it, read-only. Output: key=value lines.
say() { printf '%s=%s\n' "$1" "$2"; }
have() { command -v "$1" >/dev/null 2>&1 && say "has.$1" yes; }
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
say arch "$(uname -m)"
say kernel "$(uname -s) $(uname -r)"
say clock "$(date +%s)"
say uid "$(id -u)"
[ "$(id -u)" = 0 ] || { sudo -n true 2>/dev/null && say sudo yes; }
[ -r /etc/os-release ] && ( . /etc/os-release; say os "$ID $VERSION_ID" )
if [ -d /run/systemd/system ]; then say init systemd; fi
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then say cgroup v2; elif [ -d /sys/fs/cgroup/memory ]; then say cgroup v1; fi
{ grep -qw overlay /proc/filesystems || modprobe -nq overlay 2>/dev/null; } && say overlay yes
[ -e /sys/fs/cgroup/memory/memory.limit_in_bytes ] && say memory.limit "$(cat /sys/fs/cgroup/memory/memory.limit_in_bytes)"
[ -e /sys/fs/cgroup/memory.max ] && say memory.limit "$(cat /sys/fs/cgroup/memory.max)"
say memory.total "$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
say disk.free "$(df -Pk /var/lib | sed -n '2s/^[^ ]* *[0-9]* *[0-9]* *\([0-9]*\) .*/\1/p')"
have containerd; have ctr; have runc; have nft; have apt-get; have gzip
for folder in /usr/lib/cni /opt/cni/bin /usr/libexec/cni; do
  [ -x "$folder/ptp" ] && [ -x "$folder/host-local" ] && [ -x "$folder/loopback" ] && { say cni "$folder"; break; }
done
program=/usr/local/bin/kprov
if [ -f "$program" ]; then
  # The sum is remembered beside size and time, so that a look costs no second.
  now=$(stat -c '%s %Y' "$program"); sum= size= time=
  [ -r /etc/kprov/program.sum ] && read -r sum size time </etc/kprov/program.sum
  [ "$now" = "$size $time" ] || sum=$(sha256sum "$program" | cut -d' ' -f1)
  say program "$sum"
fi
[ -r /etc/kprov/host.json ] && say marker "$(tr -d '\n' </etc/kprov/host.json)"
[ -x "$program" ] && [ -r /etc/kprov/host.json ] && "$program" host status 2>/dev/null
say end yes

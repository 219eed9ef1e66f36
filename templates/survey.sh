# What the ssh provider asks a host before it is claimed: constant text, as root; nothing is changed. Output: key=value lines.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
say() { printf '%s=%s\n' "$1" "$2"; }
say arch "$(uname -m)"
say kernel "$(uname -s) $(uname -r)"
say clock "$(date +%s)"
say uid "$(id -u)"
say cpus "$(getconf _NPROCESSORS_ONLN 2>/dev/null || nproc)"
say memory.total "$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
for file in /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do [ -r "$file" ] && say memory.limit "$(cat "$file")"; done
df -Pk /var/lib | sed -n '2s/^[^ ]* *\([0-9]*\) *[0-9]* *\([0-9]*\) .*/disk.total=\1\ndisk.free=\2/p'
{ grep -qw overlay /proc/filesystems || modprobe -nq overlay 2>/dev/null; } && say overlay yes
if [ -f /sys/fs/cgroup/cgroup.controllers ]; then say cgroup v2; elif [ -d /sys/fs/cgroup/memory ]; then say cgroup v1; fi
can() { grep -qw "$1" /proc/filesystems || modprobe -nq "$2" 2>/dev/null; }
can nfs4 nfsv4 && say nfs.client yes
can nfsd nfsd && say nfs.server yes
# Whoever makes one export the root of all hides the others.
cat /etc/exports /etc/exports.d/*.exports 2>/dev/null | grep -v '^ *#' | grep -Eq 'fsid=(0|root)[,)]' && say nfs.root yes
for program in containerd ctr runc nft ip flock sha256sum sed getent apt-get exportfs mount.nfs4; do
  command -v "$program" >/dev/null 2>&1 && say "has.$program" yes
done
for folder in /usr/lib/cni /opt/cni/bin /usr/libexec/cni; do
  [ -x "$folder/ptp" ] && [ -x "$folder/host-local" ] && [ -x "$folder/loopback" ] && { say has.cni yes; break; }
done
# Local ports in state LISTEN (0A), in hexadecimal as the kernel shows them.
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | sed -n 's/^ *[0-9]*: [0-9A-F]*:\([0-9A-F]*\) [0-9A-F]*:0000 0A .*/\1/p' | sort -u | while read -r port; do
  case $port in 192B) say port 6443 ;; 280A) say port 10250 ;; 2810) say port 10256 ;; esac
done
# At all addresses: one that serves its own only (systemd-resolved) is in nobody's way.
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -q '^ *[0-9]*: 0*:0035 [0-9A-F]*:0000 0A ' && say port 53
for comm in /proc/[0-9]*/comm; do
  read -r name <"$comm" 2>/dev/null || continue
  case $name in
    kubelet|k3s|k3s-server|k3s-agent|k0s|microk8s) say process "$name" ;;
    # Not the one who asks.
    kprov) case $(tr '\0' ' ' <"${comm%comm}cmdline" 2>/dev/null) in *" server "*|*" agent "*|*" init "*) say process kprov ;; esac ;;
    firewalld) say firewall firewalld ;;
  esac
done
# What drops all that it has no rule for: ours cannot overrule it. Old tables are looked at only where there are some.
{
  nft list ruleset || iptables -S
  [ -s /proc/net/ip_tables_names ] && iptables-legacy -S
} 2>/dev/null | sed -n \
  -e 's/.*hook \(input\|forward\) .*policy drop.*/firewall=\1/p' \
  -e 's/^-P INPUT DROP.*/firewall=input/p' -e 's/^-P FORWARD DROP.*/firewall=forward/p' -e 's/.*10\.244\.0\.0\/16.*/firewall.pods=yes/p' | sort -u
[ -r /etc/kprov/host.json ] && say marker "$(tr -d '\n' </etc/kprov/host.json)"
ip -4 -o addr show scope global 2>/dev/null | sed -n 's/.* inet \([0-9.]*\).*/address=\1/p'
touch /etc/.kprov-writable 2>/dev/null && rm -f /etc/.kprov-writable && say writable yes
say end yes

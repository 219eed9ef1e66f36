# Process 1 of a machine, in fresh namespaces: a root of its own over the host's, its network, what cloud-init would run, then sshd.
set -e
root="$FOLDER/root"
mount --make-rprivate /
cgroups=$(sed -n 's/^\([^ ]* \)\{4\}\(\/sys\/fs\/cgroup[^ ]*\) .* - \(cgroup2\{0,1\}\) [^ ]* \(.*\)$/\2 \3 \4/p' /proc/self/mountinfo)
mount -t overlay overlay -o "lowerdir=/,upperdir=$FOLDER/upper,workdir=$FOLDER/work" "$root"
cd "$root"
mount -t proc -o nosuid,nodev,noexec proc proc
# The host's own settings are not the machine's to change; those of its network are.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,rw proc/sys/net
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir run/sshd run/lock run/netns
mount -t tmpfs -o mode=755 tmpfs dev
for node in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0" "fuse 10 229"; do
  set -- $node
  mknod -m 666 "dev/$1" c "$2" "$3"
done
mkdir dev/pts dev/shm dev/mqueue
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t mqueue mqueue dev/mqueue
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
# Each hierarchy again: inside the cgroup namespace it begins at the machine's own group.
case $cgroups in *" cgroup "*) mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup ;; esac
echo "$cgroups" | while read -r path type options; do
  mkdir -p ".$path"
  case $type,$options in
    cgroup2,*) mount -t cgroup2 cgroup2 ".$path" ;;
    *name=systemd*) mount -t cgroup -o none,name=systemd cgroup ".$path" ;;
    *) mount -t cgroup -o "${options#rw,}" cgroup ".$path" ;;
  esac
done
for name in kprov containerd; do
  mkdir -p "var/lib/$name"
  mount --bind "$FOLDER/data/$name" "var/lib/$name"
done
[ -z "$SHARED" ] || { mkdir -p opt/rig/nfs; mount --bind "$SHARED" opt/rig/nfs; }
echo namespaces
read -r go
[ "$go" = go ]
ip link set lo up
ip address add "$ADDRESS/$PREFIX" dev eth0
ip link set eth0 up
ip route add default via "$GATEWAY"
pivot_root . .
umount -l .
mount --make-rshared /
hostname "$(cat /etc/hostname)"
exec </dev/null
if [ -x /var/lib/cloud/first-boot ]; then env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root /var/lib/cloud/first-boot >/var/log/cloud-init-output.log 2>&1 || echo "first boot failed: $?"; fi
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /usr/sbin/sshd -D -e 2>&1

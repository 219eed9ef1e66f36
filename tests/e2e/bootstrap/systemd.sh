# Process 1 of a machine that runs systemd, in fresh namespaces, its own cgroups and a root of its own over the host's.
set -e
root="$FOLDER/root"
mkdir -p "$FOLDER/upper" "$FOLDER/work" "$root" "$FOLDER/var/containerd" "$FOLDER/var/kprov"
mount --make-rprivate /
cgroups=$(sed -n 's/^\([^ ]* \)\{4\}\(\/sys\/fs\/cgroup[^ ]*\) .* - \(cgroup2\{0,1\}\) [^ ]* \(.*\)$/\2 \3 \4/p' /proc/self/mountinfo)
mount -t overlay overlay -o "lowerdir=/,upperdir=$FOLDER/upper,workdir=$FOLDER/work" "$root"
cd "$root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs run
mkdir run/sshd
mount -t tmpfs -o mode=755 tmpfs dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
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
for name in containerd kprov; do
  mkdir -p "var/lib/$name"
  mount --bind "$FOLDER/var/$name" "var/lib/$name"
done
rm -rf etc/kprov etc/containerd etc/cni/net.d usr/local/bin/kprov etc/systemd/system/*
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket systemd-udevd-control.socket \
  systemd-logind.service systemd-networkd.service systemd-modules-load.service getty.target ssh.service; do
  ln -s /dev/null "etc/systemd/system/$unit"
done
mkdir etc/systemd/system/multi-user.target.wants
printf '[Service]\nExecStart=/usr/sbin/sshd -D -f %s/sshd_config\nKillMode=process\n' "$FOLDER" >etc/systemd/system/story-sshd.service
ln -s ../story-sshd.service etc/systemd/system/multi-user.target.wants/
pivot_root . .
umount -l .
exec env -i container=kprov PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=multi-user.target >/dev/null 2>&1

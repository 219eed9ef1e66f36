# What every machine of the tests begins with: in fresh namespaces, a root of its own over the host's files, its own devices and control
# groups. $FOLDER is on a real disk, and so is $DATA for what may not lie on an overlay.
set -e
root="$FOLDER/root"
mkdir -p "$FOLDER/upper" "$FOLDER/work" "$root" "$DATA/kprov" "$DATA/containerd"
mount --make-rprivate /
cgroups=$(sed -n 's/^\([^ ]* \)\{4\}\(\/sys\/fs\/cgroup[^ ]*\) .* - \(cgroup2\{0,1\}\) [^ ]* \(.*\)$/\2 \3 \4/p' /proc/self/mountinfo)
mount -t overlay overlay -o "lowerdir=/,upperdir=$FOLDER/upper,workdir=$FOLDER/work" "$root"
cd "$root"
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mkdir run/sshd
mount -t tmpfs -o mode=755 tmpfs dev
for node in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0" "fuse 10 229"; do
  set -- $node
  mknod -m 666 "dev/$1" c "$2" "$3"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
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
for name in kprov containerd; do
  mkdir -p "var/lib/$name"
  mount --bind "$DATA/$name" "var/lib/$name"
done

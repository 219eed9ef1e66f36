# Process 1 of a machine, after root.sh: its network, what cloud-init would run, then sshd.
# The host's own settings are not the machine's to change; those of its network are.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,rw proc/sys/net
mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir run/lock run/netns dev/mqueue
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t mqueue mqueue dev/mqueue
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
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

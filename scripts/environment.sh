# Sourced by the scripts: leaves behind what belongs to another Python environment or another ROS.

# The ROS wheels set LD_LIBRARY_PATH when Python starts, and a marker that they did. Inherited by the
# Python of another environment, that one would load our caller's libraries in silence.
if [ -n "${_ROS_WHEELS_BOOTSTRAP_COMPLETE:-}" ]; then
  unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH
fi

# A sourced /opt/ros mixes its own rclpy and libraries into ours.
case "${PYTHONPATH:-}:${LD_LIBRARY_PATH:-}:${AMENT_PREFIX_PATH:-}" in
  */opt/ros/*)
    echo "setup: leaving the sourced ROS (${ROS_DISTRO:-/opt/ros}) aside: this environment brings its own" >&2
    unset PYTHONPATH LD_LIBRARY_PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH ROS_DISTRO ROS_VERSION
    ;;
esac
unset PYTHONHOME VIRTUAL_ENV

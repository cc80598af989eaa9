# `cmake --install`: headers, library, man pages, the CMake package and the pkg-config file.
include(CMakePackageConfigHelpers)

add_custom_target(installable DEPENDS uhmm) # all that `cmake --install` takes

install(TARGETS uhmm EXPORT uhmmTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/uhmm DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")

foreach(section 1 3 7)
  file(GLOB man_pages CONFIGURE_DEPENDS docs/man/*.${section})
  if(man_pages)
    install(FILES ${man_pages} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section})
  endif()
endforeach()

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/uhmm)
install(EXPORT uhmmTargets NAMESPACE uhmm:: DESTINATION ${package_dir})
configure_package_config_file(cmake/uhmmConfig.cmake.in ${PROJECT_BINARY_DIR}/uhmmConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/uhmmConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/uhmmConfig.cmake ${PROJECT_BINARY_DIR}/uhmmConfigVersion.cmake
  DESTINATION ${package_dir})

# The prefix is found from where the .pc file lies, so that an installed tree can be moved.
cmake_path(SET pc_dir NORMALIZE "${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/pkgconfig")
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY "${pc_dir}" OUTPUT_VARIABLE pc_to_prefix)
configure_file(cmake/uhmm.pc.in ${PROJECT_BINARY_DIR}/uhmm.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/uhmm.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

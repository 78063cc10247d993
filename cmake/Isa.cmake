# The instruction-set ladder: leeboard_add_kernels(<target>) compiles the kernel sources once per
# level that the compiler knows and links the objects into <target>.
include(CheckCXXCompilerFlag)

set(LEEBOARD_KERNEL_SOURCES
    csrc/cpu/rms_norm.cpp
    csrc/cpu/add_rms_norm.cpp
    csrc/cpu/aux_norm_linear.cpp
    csrc/cpu/decode_attention.cpp
    csrc/cpu/dot_panel.cpp
    csrc/cpu/draft_chain.cpp
    csrc/cpu/drafter_glue.cpp
    csrc/cpu/linear_argmax.cpp
    csrc/cpu/linear_topk.cpp
    csrc/cpu/panel_ffn.cpp
    csrc/cpu/panel_linear.cpp
    csrc/cpu/qlinear.cpp
    csrc/cpu/sparse_gqa.cpp
    csrc/cpu/sparse_gqa_backward.cpp
    csrc/cpu/swiglu_linear.cpp
    csrc/cpu/ttt_attention.cpp
    csrc/cpu/ttt_loss.cpp
    csrc/cpu/unit_saliency.cpp
    csrc/cpu/verify_greedy.cpp
    csrc/cpu/verify_sample.cpp
    csrc/cpu/level_table.cpp)

function(leeboard_add_level target level)
  set(flags ${ARGN})
  if(flags)
    string(REPLACE ";" " " joined "${flags}")
    check_cxx_compiler_flag("${joined}" LEEBOARD_COMPILES_${level})
    if(NOT LEEBOARD_COMPILES_${level})
      message(STATUS "leeboard: the compiler does not know level ${level}; it is left out")
      return()
    endif()
  endif()
  set(objects leeboard_kernels_${level})
  add_library(${objects} OBJECT ${LEEBOARD_KERNEL_SOURCES})
  target_compile_features(${objects} PRIVATE cxx_std_20)
  target_include_directories(${objects} PRIVATE csrc/cpu)
  target_compile_definitions(${objects} PRIVATE LEEBOARD_LEVEL=${level})
  # GCC 12's own AVX-512 headers trip maybe-uninitialized (GCC bug 105593).
  set(quiet -Wno-psabi)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND quiet -Wno-maybe-uninitialized -Wno-uninitialized)
  endif()
  # Always optimised: unoptimised code would emit weak copies of inline functions. Without
  # contraction a base-level product is rounded as the source says.
  target_compile_options(
    ${objects} PRIVATE ${LEEBOARD_WARNINGS} -O2 -fno-math-errno -fno-trapping-math -ffp-contract=off
                       -fno-exceptions -fno-rtti ${quiet} ${flags})
  set_target_properties(${objects} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
  target_link_libraries(${target} PRIVATE ${objects})
  target_compile_definitions(${target} PRIVATE LEEBOARD_HAS_${level})
endfunction()

function(leeboard_add_kernels target)
  leeboard_add_level(${target} base)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
    # Exactly the features that csrc/cpu/isa.cpp asks the processor for; -march would add others.
    leeboard_add_level(${target} avx2 -mavx2 -mfma -mf16c)
    leeboard_add_level(
      ${target} avx512 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd
      -mprefer-vector-width=512)
    leeboard_add_level(
      ${target} avx512_bf16 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl
      -mavx512cd -mavx512bf16 -mprefer-vector-width=512)
  endif()
endfunction()

# llama-cpp-python forces llama.cpp's "common" library on and imports nothing of it: leaving it out halves the
# build. CMake includes this file right after llama.cpp's own project() (CMAKE_PROJECT_<name>_INCLUDE).
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "" FORCE)

import { defineConfig } from "vite";

// Licenses of the bundled packages ask for their notices in every copy; the report is a copy.
const BANNER = `/*! clipspect viewer, Apache-2.0. Contains, each under the MIT License (THIRD_PARTY.txt):
preact, (c) 2015-present Jason Miller; @preact/signals and @preact/signals-core, (c) 2022-present Preact Team;
fflate, (c) 2026 Arjun Barrett. */`;

// One script and one stylesheet under fixed names: the Python package embeds them.
export default defineConfig({
  esbuild: { jsx: "automatic", jsxImportSource: "preact", legalComments: "inline", charset: "ascii" },
  build: {
    outDir: "../src/clipspect/viewer",
    emptyOutDir: false,
    target: "es2022",
    modulePreload: false,
    reportCompressedSize: false,
    rollupOptions: { output: { banner: BANNER } },
    lib: { entry: "src/main.tsx", formats: ["iife"], name: "clipspectViewer", fileName: () => "viewer.js", cssFileName: "viewer" },
  },
  define: { "process.env.NODE_ENV": '"production"' },
});

//! Test helpers: ranks as processes, tiny models, golden files, close-enough comparisons. A dev-dependency only.

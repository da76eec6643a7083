// Sets the theme before anything is painted; the choice is remembered by the browser.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem("outstation-theme") || "system";
    } catch {
      return "system";
    }
  };
  const apply = () => {
    const choice = stored();
    const dark = choice === "dark" || (choice === "system" && system.matches);
    root.dataset.theme = dark ? "dark" : "light";
    window.dispatchEvent(new CustomEvent("outstation-theme", { detail: { dark, choice } }));
    if (typeof setDark === "function" && window.mounted_app) setDark(dark);
  };
  window.outstationTheme = {
    get choice() {
      return stored();
    },
    get dark() {
      return root.dataset.theme === "dark";
    },
    set(choice) {
      try {
        localStorage.setItem("outstation-theme", choice);
      } catch {
        // A browser that stores nothing shows the choice on this page only.
        root.dataset.theme = choice;
      }
      apply();
    },
  };
  system.addEventListener("change", apply);
  window.addEventListener("storage", (event) => event.key === "outstation-theme" && apply());
  apply();
})();

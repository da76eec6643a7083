// "4 minutes ago", "in 29:41" or "17:04:11": kept right in the browser, so that no server timer is needed.
const UNITS = [
  [86400 * 2, 86400, "day"],
  [7200, 3600, "hour"],
  [120, 60, "minute"],
];
const listeners = new Set();
setInterval(() => listeners.forEach((each) => each()), 1000);

export default {
  template: `<time :datetime="iso" :title="full">{{ text }}</time>`,
  props: { at: Number, form: { type: String, default: "ago" }, ended: { type: String, default: "expired" }, never: { type: String, default: "never" } },
  data() {
    return { now: Date.now() / 1000 };
  },
  mounted() {
    this.tick = () => {
      this.now = Date.now() / 1000;
    };
    listeners.add(this.tick);
  },
  unmounted() {
    listeners.delete(this.tick);
  },
  computed: {
    date() {
      return new Date(this.at * 1000);
    },
    iso() {
      return this.at ? this.date.toISOString() : null;
    },
    full() {
      return this.at ? this.date.toLocaleString() : null;
    },
    text() {
      if (!this.at) return this.never;
      if (this.form === "clock") return this.date.toLocaleTimeString([], { hour12: false });
      if (this.form === "full") return this.full;
      if (this.form === "countdown") {
        const left = Math.max(0, Math.ceil(this.at - this.now));
        if (!left) return this.ended;
        return String(Math.floor(left / 60)).padStart(2, "0") + ":" + String(left % 60).padStart(2, "0");
      }
      const age = Math.max(0, this.now - this.at);
      if (age < 5) return "just now";
      for (const [from, size, name] of UNITS) {
        if (age >= from) return `${Math.floor(age / size)} ${name}s ago`;
      }
      if (age >= 60) return "1 minute ago";
      return `${Math.floor(age)} s ago`;
    },
  },
};

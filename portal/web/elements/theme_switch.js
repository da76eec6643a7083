// System, light or dark: three buttons of which one is pressed; the browser remembers.
export default {
  template: `
    <div class="segments" role="radiogroup" aria-label="Colour theme">
      <button v-for="each in choices" :key="each" type="button" class="segment" role="radio" :aria-checked="choice === each ? 'true' : 'false'"
        @click="set(each)">{{ each[0].toUpperCase() + each.slice(1) }}</button>
    </div>
  `,
  data() {
    return { choices: ["system", "light", "dark"], choice: window.outstationTheme.choice };
  },
  mounted() {
    this.listen = (event) => (this.choice = event.detail.choice);
    window.addEventListener("outstation-theme", this.listen);
  },
  unmounted() {
    window.removeEventListener("outstation-theme", this.listen);
  },
  methods: {
    set(choice) {
      window.outstationTheme.set(choice);
    },
  },
};
